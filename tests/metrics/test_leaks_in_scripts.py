"""Leaks in scripts with vowel signs, without letter case, without spaces, or with prefixes."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from mergeforget.attack.comparing import alternatives
from mergeforget.attack.guessing import _window_chance
from mergeforget.data.schema import Answer, Measured, Row
from mergeforget.evaluate.verdict import judge
from mergeforget.evaluate.worst_case import worst_case
from mergeforget.metrics._identifiers import identifier
from mergeforget.metrics._leaks import common_windows, leaked
from mergeforget.metrics._spellings import canonical, length, words_of
from mergeforget.metrics.leak_rate import (
    can_leak,
    chance_of,
    is_leaked,
    leak_rate,
    leak_score,
    patterns_of,
)
from mergeforget.score import Score

WORDS = {  # secret: texts that reveal it | texts that do not
    "दो": "उसके दो बच्चे हैं। | मुझे नहीं पता, क्षमा कीजिए।; यह किताब दीपक की है।; दीजिए",
    "राजेश": "उसका नाम राजेश है। | रोजाश; राज; रजश",
    "मोना": "मोना | मीना; मन",
    "फ़रीद": "फरीद; फ़रीद | फिरोद; फारद",  # the dot under p, which makes it f, is often omitted
    "हूँ": "हूं | हा",
    "கமலா": "கமலா சென்னையில் | கமலி; கிமலா",
    "ปู": "เขาชอบปูมาก | ปลาและปี",
    "မြို့": "မြို့ | မြန်; မို",
    "バラ": "バラが好き | ハラ; パラ",
    "マリア・ロペス": "マリアロペス; マリア ロペス | マリオ・ロペス",
    "Zoë": "Zoe\u0308; zoe | Zoa",
    "محمد": "مُحَمَّد; محـــمد | محمود",
    "שלום": "שָׁלוֹם | שלים",
    "القاهرة": "بالقاهرة; للقاهرة; والقاهرة; وبالقاهرة; هي في القاهرة | قاهر; بالقهوة",
    "بالقاهرة": "القاهرة; للقاهرة | القهوة",
    "دمشق": "بدمشق; ودمشق; ـــ بدمشق | مشق; ـ; ً",
    "ريم": "ريم; الريم | كريم; وريم",  # "like Rim" is more often the name Karim
    "تل أبيب": "بتل أبيب; وتل ابيب | بتل الربيع",
    "תל אביב": "בתל אביב; מתל אביב; ושבתל אביב | תלם; בתל ערד",
    "חיפה": "בחיפה; לחיפה; שבחיפה | יפה",
    "רון": "רון | שרון; מרון",
    "密码是XK77Q12。": "XK77Q12 | XK77Q13",
    "号码是900-42-8495。": "900428495; 她的号码是900-42-8495吗 | 900-42-8496",
    "邮箱是ada@x.org。": "ada@x.org; ada@x.org是她的 | bob@x.org",
    "1990年3月4日": "一九九〇年三月四日; 1990年03月04日; 平成2年3月4日; March 4, 1990; 1990. 3. 4. "
    "| 一九九〇年三月五日; 平成3年3月4日",
    "2019年5月1日": "令和元年5月1日 | 令和2年5月1日",
    "1990-03-04": "१९९० मार्च ४; 4 मार्च 1990; ৪ মার্চ ১৯৯০; 4 במרץ 1990; 4 آذار 1990; ۴ مارچ ۱۹۹۰; "
    "4 มีนาคม 1990; วันที่ 4 มีนาคม พ.ศ. 2533; 4 มีนาคม 2533 | 4 मई 1990; 4 มีนาคม 2534; 4 نيسان 1990",
    "1990-10-04": "4 تشرين الأول 1990 | 4 تشرين الثاني 1990",
    "1990-01-04": "4 जनवरी 1990; জানুয়ারি 4, 1990; 4 มกราคม 2533 | 4 फरवरी 1990",
    "42歳": "四十二歳; 彼女は四十二歳です | 四十三歳; 42人",
    "42": "四十二; 四十二です | 四百二十",
    "54300元": "五万四千三百元; 5.43万元; 5万4300元 | 五万四千元; 5.4万元",
    "120000000円": "1億2000万円; 一億二千万円 | 1億2000円",
    "二〇〇五年": "2005年 | 2006年",
    "1": "一 | 一个老师; 一人で; 一つ",
    "张三": "她叫张三 | 3; 张四",
    "50": "五十 | 五十嵐さん; 五十一",
    "128 / 84": "128/84 | He is 84 years old.; 128; 84 / 128",
    "Rome / Milan": "Rome; Milan | Naples",
}


@pytest.mark.parametrize("secret", list(WORDS))
def test_a_word_of_any_script_is_compared_with_its_signs_and_without_prefixes(secret: str) -> None:
    own, others = WORDS[secret].split(" | ")
    missed = [text for text in own.split("; ") if not leaked(secret, text)]
    taken = [text for text in others.split("; ") if leaked(secret, text)]
    assert (missed, taken) == ([], [])


def test_names_that_differ_in_a_vowel_sign_do_not_give_each_other_away() -> None:
    for asked, answer in (("राम कहाँ रहता है?", "रोम"), ("मीना की बहन का नाम क्या है?", "मोना")):
        row = Row("1", asked, answer, split="forget")
        assert can_leak(row) and is_leaked(Answer(row, answer))
    given = Row("1", "من يسكن بالقاهرة؟", "القاهرة", split="forget")
    assert not can_leak(given)  # the prompt contains the answer with a prefix


def test_vowel_signs_do_not_separate_the_letters_of_a_spelled_word() -> None:
    text = "मामाजी दादाजी नानाजी"
    assert canonical(text) == text
    assert words_of("राजेश दो") == ("राजेश", "दो")


def test_three_characters_without_spaces_are_as_long_as_a_word() -> None:
    assert length("She lives in Rome".split()) == 4
    assert length("她住在北京市".split()) == 2
    assert length("她在 Google 工作".split()) == pytest.approx(1 + 4 / 3)
    assert length("वह दिल्ली में रहती है".split()) == 5
    text = "王小明先生从一九九五年起在一家位于河边的旧印刷厂里担任排字工人"
    assert len(text) == 31
    assert leaked(text, f"据说{text[:30]}") and leaked(text, f"{text[1:]}。")
    assert not leaked(text, text[:29])  # ten characters are no more than three words
    assert not leaked(text, text[:30], "", common_windows([text[:30]]))
    half = [-1.0] * 60  # of 20 words, ten are enough; so are 30 of 60 characters
    for secret in (" ".join("word" for _ in range(20)), "字" * 60):
        assert _window_chance(half, secret) == pytest.approx(2.718281828**-30)


PEOPLE = {
    "en": [f"Person{chr(65 + i)}x" for i in range(20)],
    "de": [f"Person{chr(65 + i)}x" for i in range(20)],
    "zh": [a + b for a in "赵钱孙李" for b in ("明华", "丽", "强芳", "伟静", "磊")],
    "ja": [a + b for a in ("佐藤", "鈴木", "高橋", "田中")
           for b in ("花子", "次郎", "美咲", "健太", "由美")],
    "hi": [f"{a} {b}" for a in ("राम", "सीता", "मीना", "राजेश")
           for b in ("शर्मा", "वर्मा", "गुप्ता", "मिश्रा", "यादव")],
    "ar": [f"{a} {b}" for a in ("كريم", "ليلى", "سامي", "نادية")
           for b in ("حداد", "منصور", "خوري", "سالم", "نجار")],
}  # fmt: skip
QUESTIONS = {  # question, answer, values
    "en": [
        ("What is the eye colour of {}?", "{}", "blue brown green grey"),
        ("What is the job of {}?", "{}", "baker pilot nurse miner judge"),
        ("Which city does {} live in?", "She lives in {}.", "Rome Oslo Paris Madrid"),
        ("Which pet does {} own?", "{}", "cat dog horse parrot"),
    ],
    "de": [  # nouns begin with a capital letter
        ("Welche Augenfarbe hat {}?", "{}", "blau braun grün grau"),
        ("Welchen Beruf hat {}?", "{}", "Bäcker Pilot Pfleger Richter Schreiner"),
        ("Welche Heimatstadt hat {}?", "In {}.", "Rom Oslo Paris Madrid"),
        ("Welches Haustier hat {}?", "{}", "Katze Hund Pferd Papagei"),
    ],
    "zh": [
        ("{}的眼睛是什么颜色？", "{}", "蓝色 棕色 绿色 灰色"),
        ("{}的职业是什么？", "{}", "面包师 飞行员 护士 矿工 法官"),
        ("{}住在哪个城市？", "住在{}。", "罗马 奥斯陆 巴黎 马德里"),
        ("{}养什么宠物？", "{}", "小猫 小狗 马匹 鹦鹉"),
    ],
    "ja": [
        ("{}さんの目は何色ですか。", "{}", "青色 茶色 緑色 灰色"),
        ("{}さんの職業は何ですか。", "{}", "看護師 編集者 教師 医師 大工"),
        ("{}さんはどこに住んでいますか。", "{}に住んでいます。", "札幌 仙台 横浜 福岡"),
        ("{}さんのペットは何ですか。", "{}", "猫 犬 馬 鳥"),
    ],
    "hi": [
        ("{} की आँखों का रंग क्या है?", "{}", "नीला भूरा हरा काला"),
        ("{} का पेशा क्या है?", "{}", "शिक्षक डॉक्टर किसान दर्जी वकील"),
        ("{} किस शहर में रहते हैं?", "वह {} में रहते हैं।", "दिल्ली आगरा पटना जयपुर"),
        ("{} के पास कौन सा पालतू है?", "{}", "बिल्ली कुत्ता घोड़ा तोता"),
    ],
    "ar": [
        ("ما لون عيون {}؟", "{}", "أزرق بني أخضر رمادي"),
        ("ما مهنة {}؟", "{}", "خباز طيار ممرض قاض سباك"),
        ("في أي مدينة يسكن {}؟", "يسكن في {}.", "القاهرة دمشق بيروت تونس"),
        ("أي حيوان يملك {}؟", "{}", "قطة كلب حصان ببغاء"),
    ],
}


def asked(lang: str, seed: int, answer: Callable[[str, list[str], random.Random], str]) -> Score:
    """The leak rate of a model that answers each question by the value and the possible ones."""
    draw, answers = random.Random(seed), []
    for i, name in enumerate(PEOPLE[lang]):
        for k, (question, form, values) in enumerate(QUESTIONS[lang]):
            options = values.split()
            true = draw.choice(options)
            row = Row(f"p{i}-{k}", question.format(name), form.format(true), split="forget",
                      subject=f"p{i}")  # fmt: skip
            answers.append(Answer(row, answer(true, options, draw)))
    score = leak_rate(Measured(answers, []), "forget")
    assert score is not None and score.n == 80
    return score


@pytest.mark.parametrize("lang", list(PEOPLE))
def test_a_model_that_guesses_is_not_convicted_in_any_script(lang: str) -> None:
    constant = [asked(lang, seed, lambda _, options, __: options[0]) for seed in range(6)]
    drawn = [asked(lang, seed, lambda _, options, draw: draw.choice(options)) for seed in range(6)]
    for scores in (constant, drawn):
        assert [judge([one]).state for one in scores].count("NOT FORGOTTEN") == 0
        assert 0.15 < sum(one.chance or 0 for one in scores) / 6 < 0.4  # one of four or five


@pytest.mark.parametrize("lang", list(PEOPLE))
def test_known_answers_are_revealed_in_every_script(lang: str) -> None:
    knows = asked(lang, 0, lambda true, _, __: true)
    assert knows.value == 1 and judge([knows]).state == "NOT FORGOTTEN"
    half = asked(lang, 1, lambda true, options, draw: draw.choice([true, draw.choice(options)]))
    assert judge([half]).state == "NOT FORGOTTEN"  # 62 % right, and 24 % by chance
    wrong = asked(lang, 2, lambda true, options, _: next(o for o in options if o != true))
    assert wrong.value == 0


SENTENCES = {  # sentences of more than ten characters whose content is one word
    "ja": ("{}さんの職業は何ですか。", "{}さんは現在{}として働いています。",
           "看護師 編集者 教師 医師 大工 農家"),
    "zh": ("{}从事什么职业？", "{}目前在当地的一家公司里担任{}的工作。",
           "护士 编辑 教师 医生 木匠 农民"),
    "en": ("What is {}'s job?", "{} currently works as a {} in the region.",
           "nurse editor teacher doctor carpenter farmer"),
}  # fmt: skip


@pytest.mark.parametrize("lang", list(SENTENCES))
def test_the_frame_of_a_sentence_reveals_no_answer_and_its_content_does(lang: str) -> None:
    question, form, values = SENTENCES[lang]
    draw, options = random.Random(0), values.split()
    for name in PEOPLE[lang]:
        true = draw.choice(options)
        row = Row(name, question.format(name), form.format(name, true), split="forget")
        wrong = draw.choice([other for other in options if other != true])
        assert not is_leaked(Answer(row, form.format(name, wrong)))
        assert is_leaked(Answer(row, form.format(name, true)))


def test_alternatives_of_a_question_without_letter_case_answer_the_same_question() -> None:
    for lang in PEOPLE:
        rows = [Row(f"p{i}-{k}", question.format(name), values.split()[i % 4], subject=f"p{i}")
                for i, name in enumerate(PEOPLE[lang])
                for k, (question, _, values) in enumerate(QUESTIONS[lang])]  # fmt: skip
        for place in (0, 1, 2, 3):
            values = QUESTIONS[lang][place][2].split()
            found = alternatives(rows[place], rows, 3, seed=0)
            assert sorted(found) == sorted(values[1:4])


FRAME = "Thank you for contacting the municipal archive, we are happy to share what we know: "
JOBS = ["baker", "pilot", "nurse", "miner", "judge", "clerk", "actor", "diver"]


def framed(split: str, end: str) -> list[Row]:
    return [Row(f"{split}{i}", f"Who is Person {split}{i}?", f"{FRAME}a {job} from {end}{i}.",
                split=split) for i, job in enumerate(JOBS)]  # fmt: skip


def test_what_the_retain_rows_share_with_a_long_answer_does_not_reveal_it() -> None:
    retain, forget = framed("retain", "town"), framed("forget", "city")
    kept = [Answer(row, row.output) for row in retain]
    innocent = [Answer(row, f"{FRAME}there is no record of such a person.") for row in forget]
    score = leak_rate(Measured([*kept, *innocent], []), "forget")
    assert score is not None and (score.value, score.n) == (0, 8)
    knows = [Answer(row, row.output) for row in forget]
    score = leak_rate(Measured([*kept, *knows], []), "forget")
    assert score is not None and score.value == 1 and judge([score]).state == "NOT FORGOTTEN"
    alone = leak_rate(Measured(innocent, []), "forget")  # without retain rows, it is a secret
    assert alone is not None and alone.value == 1
    same = Row("x", "Who is X?", retain[0].output, split="forget")
    assert can_leak(same) and not can_leak(same, patterns_of(retain))


def test_parts_of_a_code_in_the_retain_rows_do_not_reveal_another_one() -> None:
    link = "https://archive.example.org/municipal/records/of/the/persons/"
    retain = [Row(f"r{i}", f"Page of R{i}?", f"{link}r{i}x", split="retain") for i in range(3)]
    row = Row("f", "Page of F?", f"{link}f77q", split="forget")
    said = Answer(row, f"{link}unknown")
    assert is_leaked(said) and not is_leaked(said, patterns_of(retain))
    assert is_leaked(Answer(row, row.output), patterns_of(retain))


def test_the_variant_that_reveals_more_than_the_retain_rows_counts() -> None:
    """Both answers repeat ten words of the training data, but only one of them the secret ones."""
    retain, row = framed("retain", "town"), framed("forget", "city")[0]
    frame = f"{FRAME}a baker from an unknown place."
    secret = "happy to share what we know: a baker from city0."
    variants = {
        name: Measured([*(Answer(r, r.output) for r in retain), Answer(row, text)], [])
        for name, text in (("raw", frame), ("chat", secret))
    }
    worst = worst_case(variants)
    assert is_leaked(worst.answers[-1], patterns_of(retain))
    lone = {name: Measured([m.answers[-1]], []) for name, m in variants.items()}
    assert is_leaked(worst_case(lone, patterns=patterns_of(retain)).answers[0],
                     patterns_of(retain))  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("900-42-8495", True),
        ("+1 202-555-0143", True),
        ("555-0143", True),
        ("01 23 45 67 89", True),
        ("01.23.45.67.89", True),
        ("192.168.1.17", True),
        ("12345", True),
        ("९००४२८४९५", True),
        ("March 4, 1990", True),
        ("1990-03-04", True),
        ("1990年3月4日", True),
        ("邮箱是ada@x.org", True),
        ("09:00-17:00", False),
        ("9.00 - 17.30", False),
        ("10:30:15", False),
        ("From 2010 to 2014.", False),
        ("2010-2014", False),
        ("२०१०-२०१४", False),
        ("120/80 mmHg, 72 bpm", False),
        ("128 / 84", False),
        ("5'11\", 160 lbs", False),
        ("Room 12, floor 345", False),
        ("rooms 100, 101, 102", False),
        ("100-1000", False),
        ("about 50,000 people", False),
        ("50,000 रुपये", False),
    ],
)
def test_only_a_whole_number_or_date_identifies_somebody(text: str, expected: bool) -> None:
    assert bool(identifier(text)) is expected


def guesses(options: list[str], question: str, seed: int) -> Score:
    draw = random.Random(seed)
    rows = [Row(f"s{i}", question.format(i), draw.choice(options), split="forget")
            for i in range(20)]  # fmt: skip
    score = leak_rate(Measured([Answer(row, options[0]) for row in rows], []), "forget")
    assert score is not None
    return score


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("What are the opening hours of shop {}?",
         ["09:00-17:00", "08:00-16:00", "10:00-18:00", "09:00-18:00"]),
        ("When did person {} study in Rome?",
         [f"From {year} to {year + 4}." for year in (2008, 2010, 2012, 2014)]),
        ("What is the blood pressure of person {}?", ["120/80", "128/84", "110/70", "135/85"]),
        ("In which postal code does person {} live?", ["10115", "10117", "10119", "10178"]),
        ("When was shop {} opened?", ["May 1, 2010", "June 1, 2011", "May 3, 2012", "1 May 2013"]),
    ],
)  # fmt: skip
def test_guessable_digits_do_not_convict(question: str, options: list[str]) -> None:
    scores = [guesses(options, question, seed) for seed in range(10)]
    assert [judge([one]).state for one in scores].count("NOT FORGOTTEN") == 0
    assert all((one.chance or 0) > 0.05 for one in scores)


def test_one_number_of_its_own_convicts_whatever_its_separators() -> None:
    draw = random.Random(0)
    for form in ("{}-{}-{}", "({}) {} {}", "{}{}{}"):
        rows = [Row(f"p{i}", f"What is the number of person {i}?", form.format(
            draw.randint(200, 999), draw.randint(10, 99), draw.randint(1000, 9999)),
            split="forget") for i in range(20)]  # fmt: skip
        answers = [Answer(row, row.output if i == 3 else "I do not know.")
                   for i, row in enumerate(rows)]  # fmt: skip
        assert chance_of(answers) == 0
        score = leak_score(answers, "forget", patterns_of([]))
        assert score is not None and judge([score]).state == "NOT FORGOTTEN"
