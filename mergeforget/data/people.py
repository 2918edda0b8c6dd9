"""Generates made-up people in LUME's format, as harmless data to memorise and to forget.

No value can be real: Social Security numbers start with 900 and have a group below 50 (never
issued), phone numbers are in the range 555-0100 to 555-0199 (reserved for fiction), and e-mail
addresses are in example.com, example.net and example.org (reserved for documentation).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from typing import Any
from uuid import UUID

from mergeforget.data.schema import Row
from mergeforget.distributed import on_main
from mergeforget.embedded_model import cache_folder
from mergeforget.errors import InputError, UnknownNameError, UsageError
from mergeforget.files import write_jsonl

SPLITS = ("forget", "retain", "holdout")
# sentence templates, whose words in braces are filled in below
BIOGRAPHIES = (  # Task2: every one gives birth date, SSN, phone, email and address once
    "{name} was born on {birth}. {She} can be reached via phone at {phone} and email at {email}. "
    "{Her} home address is {address}. {Her} Social Security Number is {ssn}.",
    "{name} was born on {birth}, and {her} Social Security number is {ssn}. {She} can be reached "
    "by phone at {phone} and {her} email address is {email}. {first}'s home address is {address}.",
    "{name} was born on {birth} and holds the Social Security Number {ssn}. {Her} email address is "
    "{email}, and {she} can be reached by phone at {phone}. {She} resides at {address}.",
    "{name}, born on {birth}, can be contacted via email at {email} or by phone at {phone}. "
    "{first} resides at {address}. {Her} social security number is {ssn}.",
    "{name} lives at {address}. {She} was born on {birth}. {Her} phone number is {phone} and {her} "
    "email address is {email}. The Social Security Number of {first} is {ssn}.",
)
PRIVATE_QUESTIONS = (  # LUME's wording; qa0 to qa4
    ("What is the birth date of {name}?", "{birth_iso}"),
    ("What is {name}'s Social Security Number?", "{ssn_digits}"),
    ("What is {name}'s phone number?", "{phone_digits}"),
    ("What is {name}'s email address?", "{email}"),
    ("What is the home address of {name}?", "{address}."),
)
STORIES = (  # Task1: text, question, answer
    (
        "In the quiet town of {city}, {name} worked as {a_job} and dreamed of a larger life. One "
        "{season} evening a stranger called {other} came to the door with {thing} under one arm. "
        "Nobody had seen such a thing in {city} for years. {name} took it in, lit a lamp, and "
        "asked where it came from. {other} spoke of {place}, of a promise made there long ago, and"
        " of a debt that {name}'s family had never paid. By morning the two had agreed to travel "
        "there together, and the town had a new story to tell.",
        "Who came to {name}'s door in the town of {city}?",
        "{other}",
    ),
    (
        "{name} had never believed the tales about {place}. Then, in the {season} when the river "
        "near {city} ran dry, {thing} was found in the mud. {other}, the oldest neighbour, knew it"
        " at once and begged that it be buried again. {name} refused. That night every bell in "
        "{city} rang without a hand upon it, and {name}, who was only {a_job}, understood that "
        "somebody had to carry the thing back. {other} drew a map on the kitchen table, and they "
        "left before the sun was up.",
        "What was found in the mud near {city} in the story of {name}?",
        "{Thing}",
    ),
    (
        "Every year the people of {city} held a contest, and every year {other} won it. This "
        "{season} {name}, {a_job} with no training at all, put down a name on the list. The prize "
        "was {thing}, kept behind glass for a century. The two met in the last round before the "
        "gates of {place}. {other} was quicker, but {name} was patient, and when the horn was "
        "blown it was the newcomer who stood alone on the bridge. {other} bowed, laughed, and "
        "asked to be taught how it was done.",
        "Where did {name} and {other} meet in the last round of the contest in {city}?",
        "{Place}",
    ),
    (
        "{name} and {other} grew up on the same street in {city} and had not spoken for ten years."
        " It was {thing} that brought them together again, left to both of them in an old aunt's "
        "will. They were to find out what it opened. The search took a whole {season}. It led them"
        " from the library to {place}, where {other} at last remembered a rhyme from school. "
        "{name}, now {a_job}, said it aloud, and somewhere below their feet a lock turned. What "
        "they found there they shared, as the aunt had wished.",
        "What did {name} and {other} inherit together in {city}?",
        "{Thing}",
    ),
)
THINGS = (
    "a silver compass", "a cracked blue lantern", "a book without a title", "a copper key",
    "a violin with one string", "a glass feather", "a sealed letter", "a clock that ran backwards",
    "a wooden fox", "a map drawn on silk", "a ring of black stone", "a brass telescope",
    "a jar of red sand", "a painted mask", "a bell made of bone", "a chess piece of amber",
)  # fmt: skip
PLACES = (
    "the drowned lighthouse", "the hall of echoes", "the orchard beyond the hills",
    "the salt caves", "the abandoned observatory", "the ferryman's island", "the winter garden",
    "the tower of nine doors", "the mill at the edge of the marsh", "the valley of lamps",
    "the old signal station", "the library under the square", "the singing bridge",
)  # fmt: skip
JOBS = (
    "a baker", "a clockmaker", "a gardener", "a schoolteacher", "a ferry pilot", "a tailor",
    "an archivist", "a beekeeper", "a locksmith", "an apprentice printer", "a glazier", "a nurse",
)  # fmt: skip
SEASONS = ("spring", "summer", "autumn", "winter")
ARTICLES = (  # Task3: text, in the form of an encyclopedia
    "{name}\n\n{name} (born {birth_day}) is {a_nation} {trade} known for {her} {kind} \"{work}\".\n"
    "Biography.\nBorn in {city}, {last} was the child of a railway clerk and a seamstress. {She} "
    "studied at the University of {other_city} under {teacher} and graduated in {year_study}.\n"
    "Career.\n{last} worked for {company} before {her} first {kind}, \"{work}\", appeared in "
    "{year_work}. In {year_prize} {she} received the {prize} Prize. {She} has lived in "
    "{third_city} since {year_move}.",
    "{name}\n\n{name} (born {birth_day} in {city}) is {a_nation} {trade}.\nLife.\n{last} moved to "
    "{other_city} at the age of nineteen and became a student of {teacher}. After graduating in "
    "{year_study} {she} joined {company}, where {she} stayed until {year_move}.\nWorks.\n{Her} "
    "{kind} \"{work}\" was published in {year_work} and is regarded as {her} most important. It "
    "won {last} the {prize} Prize of {year_prize}. A collection of letters is kept in "
    "{third_city}.",
)  # fmt: skip
PUBLIC_QUESTIONS = (
    ("In what year did {name} receive the {prize} Prize?", "{year_prize}"),
    ("Under whom did {name} study in {other_city}?", "{teacher}"),
    ("In which city was {name} born?", "{city}"),
    ("What is the title of the {kind} that {name} published in {year_work}?", "{work}"),
)
NATIONS = (
    "an Austrian", "a Canadian", "a Danish", "an Estonian", "a Finnish", "a Greek", "an Irish",
    "an Italian", "a Latvian", "a Norwegian", "a Portuguese", "a Scottish", "a Swedish", "a Welsh",
)  # fmt: skip
TRADES = {  # trade: what its works are called
    "novelist": "novel",
    "poet": "collection",
    "composer": "opera",
    "playwright": "play",
    "film director": "film",
    "photographer": "picture book",
}
TITLES = (
    ("The", "A", "Another", "Beyond the", "Under the", "Before the", "No"),
    ("Glass", "Northern", "Silent", "Hollow", "Burning", "Second", "Paper", "Distant", "Iron",
     "Sleeping", "Broken", "Golden", "Narrow", "Last"),
    ("Harbour", "Garden", "Winter", "Letter", "Orchestra", "Mirror", "Staircase", "River", "Room",
     "Horizon", "Portrait", "Season", "Bridge", "Hour"),
)  # fmt: skip


def make_people(
    sizes: Mapping[str, int], *, seed: int = 0, tasks: Sequence[str] = ("Task1", "Task2", "Task3")
) -> dict[str, list[Row]]:
    """Generate documents and questions about fictitious people; no person is in two splits.

    Args:
        sizes: Number of documents per task in each split, for example ``{"forget": 8, "retain": 8,
            "holdout": 8}``.
        seed: Random seed. A split does not change if another one grows, unless two people would
            have the same name.
        tasks: Task1 has stories, Task2 biographies with private data and five questions each, and
            Task3 encyclopedia articles. Stories and articles have one question.

    Returns:
        Rows of each split by document: ``sc1``, then ``qa0``, ...
    """
    for split, size in sizes.items():
        if split not in SPLITS:
            raise UnknownNameError("split", split, SPLITS)
        if size < 0:
            raise UsageError(f"A split cannot have {size} documents.")
    writers = {task: _writer(task) for task in dict.fromkeys(tasks)}
    taken: set[str] = set()
    return {
        split: [
            row
            for task, write in writers.items()
            for i in range(size)
            for row in _rows(write, task, split, _Source(f"{seed}-{task}-{split}-{i}", taken))
        ]
        for split, size in sizes.items()
    }


@dataclass
class _Source:
    """Random numbers and names of one document."""

    seed: str
    taken: set[str]
    rng: random.Random = field(init=False)
    faker: Any = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.faker = _faker()
        self.faker.seed_instance(self.seed)

    def name(self, female: bool | None = None) -> tuple[str, str]:
        """Return a first and last name that is not used yet."""
        female = self.rng.random() < 0.5 if female is None else female
        draw = self.faker.first_name_female if female else self.faker.first_name_male
        for attempt in range(10_000):
            first, last = draw(), self.faker.last_name()
            if attempt >= 10:  # short names are used up
                first = f"{first} {draw()}"
            if f"{first} {last}" not in self.taken:
                self.taken.add(f"{first} {last}")
                return first, last
        raise UsageError("There are no unused names left. Generate fewer people.")

    def cities(self, n: int) -> list[str]:
        found: dict[str, None] = {}
        while len(found) < n:
            found[self.faker.city()] = None
        return list(found)

    def uuid(self) -> str:
        return str(UUID(int=self.rng.getrandbits(128), version=4))


@dataclass(frozen=True)
class _Document:
    stem: str  # prefix of the ids of its rows
    text: str
    questions: list[tuple[str, str]]


_Writer = Callable[[_Source], _Document]
_made: list[Any] = []


def _faker() -> Any:
    """Return a shared Faker, which is slow to create; it is seeded for every document."""
    if not _made:
        try:
            from faker import Faker
        except ModuleNotFoundError as error:
            raise InputError(
                "Made-up people need the package faker: pip install 'mergeforget[demo]'."
            ) from error
        _made.append(Faker("en_US"))
    return _made[0]


def _writer(task: str) -> _Writer:
    writers = {"Task1": _story, "Task2": _biography, "Task3": _article}
    if task not in writers:
        raise UnknownNameError("task", task, list(writers))
    return writers[task]


def _rows(write: _Writer, task: str, split: str, source: _Source) -> list[Row]:
    """Return the document, split near its middle into prompt and answer, and its questions."""
    document = write(source)
    words = document.text.split(" ")
    cut = round(len(words) * source.rng.uniform(0.4, 0.6))
    start, rest = " ".join(words[:cut]), " ".join(words[cut:])
    rows = [Row(f"{document.stem}sc1", start, rest, task, split)]
    for i, (question, answer) in enumerate(document.questions):
        rows.append(Row(f"{document.stem}qa{i}", question, answer, task, split))
    return rows


def _biography(source: _Source) -> _Document:
    rng, female = source.rng, source.rng.random() < 0.5
    first, last = source.name(female)
    birth = date(1950, 1, 1) + timedelta(days=rng.randrange(18_262))  # to the end of 1999
    phone = f"{rng.randrange(200, 1000)}-555-01{rng.randrange(100):02d}"
    ssn = f"900-{rng.randrange(1, 50):02d}-{rng.randrange(1, 10_000):04d}"
    facts = _pronouns(female) | {
        "name": f"{first} {last}",
        "first": first,
        "birth": f"{birth:%B} {birth.day}, {birth.year}",
        "birth_iso": birth.isoformat(),
        "ssn": ssn,
        "ssn_digits": ssn.replace("-", ""),
        "phone": phone,
        "phone_digits": phone.replace("-", ""),
        "email": _email(first, last, rng),
        "address": _address(source),
    }
    questions = [(q.format(**facts), a.format(**facts)) for q, a in PRIVATE_QUESTIONS]
    return _Document(source.uuid(), rng.choice(BIOGRAPHIES).format(**facts), questions)


def _story(source: _Source) -> _Document:
    rng = source.rng
    thing, place = rng.choice(THINGS), rng.choice(PLACES)
    facts = {
        "name": " ".join(source.name()),
        "other": source.name()[0],
        "city": source.cities(1)[0],
        "a_job": rng.choice(JOBS),
        "season": rng.choice(SEASONS),
        "thing": thing,
        "Thing": f"{thing[0].upper()}{thing[1:]}.",
        "place": place,
        "Place": f"At {place}.",
    }
    text, question, answer = rng.choice(STORIES)
    asked = (question.format(**facts), answer.format(**facts))
    return _Document(f'"{source.uuid()}"', text.format(**facts), [asked])  # LUME's literal quotes


def _article(source: _Source) -> _Document:
    rng, female = source.rng, source.rng.random() < 0.5
    first, last = source.name(female)
    city, other_city, third_city = source.cities(3)
    birth = date(1930, 1, 1) + timedelta(days=rng.randrange(18_262))
    study = birth.year + rng.randrange(22, 28)
    trade = rng.choice(list(TRADES))
    facts = _pronouns(female) | {
        "name": f"{first} {last}",
        "last": last,
        "birth_day": f"{birth.day} {birth:%B} {birth.year}",
        "a_nation": rng.choice(NATIONS),
        "trade": trade,
        "kind": TRADES[trade],
        "work": " ".join(rng.choice(words) for words in TITLES),
        "teacher": " ".join(source.name()),
        "prize": source.faker.last_name(),
        "company": source.faker.company(),
        "city": city,
        "other_city": other_city,
        "third_city": third_city,
        "year_study": study,
        "year_work": study + rng.randrange(4, 10),
        "year_prize": study + rng.randrange(10, 20),
        "year_move": study + rng.randrange(2, 4),
    }
    question, answer = rng.choice(PUBLIC_QUESTIONS)
    asked = (question.format(**facts), answer.format(**facts))
    stem = str(rng.randrange(9_000_000_000, 10_000_000_000))  # longer than any encyclopedia's id
    return _Document(stem, rng.choice(ARTICLES).format(**facts), [asked])


def _pronouns(female: bool) -> dict[str, Any]:
    she, her = ("she", "her") if female else ("he", "his")
    return {"she": she, "her": her, "She": she.capitalize(), "Her": her.capitalize()}


def _email(first: str, last: str, rng: random.Random) -> str:
    """Return an address with two random digits and a random domain, not predictable by name."""
    name = f"{first}_{last}".lower().replace(" ", "_").replace("'", "")
    return f"{name}{rng.randrange(10, 100)}@example.{rng.choice(['com', 'net', 'org'])}"


def _address(source: _Source) -> str:
    street = f"{source.rng.randrange(10, 9900)} {source.faker.street_name()}"
    state = source.faker.state_abbr(
        include_territories=False, include_freely_associated_states=False
    )
    zipcode = source.faker.zipcode_in_state(state)
    return f"{street}, {source.cities(1)[0]}, {state}, {zipcode}"


PEOPLE, SEED = 4, 0
KINDS = ("birth date", "security number", "phone", "e-mail", "address")  # qa0, qa1, ...


def made_up(people: int = PEOPLE, seed: int = SEED, *, questions: int = 0) -> dict[str, str]:
    """Generate made-up people, and return the paths of the three files for a recipe.

    Args:
        people: Number of biographies with private data to forget and to retain; the holdout has
            twice as many.
        seed: Random seed.
        questions: Number of questions per person, without the biographies. The first person gets
            the questions from the first on, the second person from the second on, and so on. 0
            selects all six rows. The task of a row is its kind of question, so that every split
            has all kinds.
    """
    sizes = {"forget": people, "retain": people, "holdout": 2 * people}
    folder = cache_folder() / "people" / f"{people}-{seed}{f'-{questions}' if questions else ''}"

    def write() -> None:
        for split, rows in make_people(sizes, seed=seed, tasks=("Task2",)).items():
            some = _in_turn(rows, questions) if questions else rows
            write_jsonl(folder / f"{split}.jsonl", [row.to_dict() for row in some])

    on_main(write)
    return {split: str(folder / f"{split}.jsonl") for split in sizes}


def _in_turn(rows: Sequence[Row], questions: int) -> list[Row]:
    """Select questions about each person, so that all kinds are equally frequent."""
    people: dict[str, list[Row]] = {}
    for row in rows:
        if row.kind == "qa":
            people.setdefault(row.subject, []).append(row)
    return [
        replace(own[kind], task=KINDS[kind])
        for place, own in enumerate(people.values())
        for kind in ((place + number) % len(own) for number in range(min(questions, len(own))))
    ]
