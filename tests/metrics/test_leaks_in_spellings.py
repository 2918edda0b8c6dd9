"""Other spellings of a secret reveal it: dates, numbers, names, units, codes."""

from __future__ import annotations

import pytest

from mergeforget.metrics._leaks import leaked

LONG = " ".join(f"w{i}" for i in range(14))


@pytest.mark.parametrize(
    ("secret", "text", "expected"),
    [
        ("Rome", "She lives in ROME.", True),
        ("Rome", "a romer", False),  # a short answer must be a separate word
        ("900428495", "It is 900-42-8495.", True),
        ("900-42-8495", "900428495", True),
        ("900428495", "9 0 0 4 2 8 4 9 5", True),
        ("900428495", "900-42-8496", False),
        ("900428495", "77719004284951", False),  # another number that contains it
        ("5551234567", "Call +1 (555) 123-4567 now", True),
        ("+49 30 1234567", "030... no: 30 1234567", True),
        ("1,815", "about 1815 people", True),
        ("ada@x.org", "Write to <ada@x.org>!", True),
        ("ada@x.org", "ADA [at] x [dot] org", True),
        ("ada@x.org", "ada at x dot org", True),
        ("ada@x.org", "nada@x.org", False),
        ("4 Elm Street", "at 4 Elm St.", True),
        ("4 Elm Street, Los Angeles, CA", "4 elm st, Los Angeles, California", True),
        ("4 Elm Street", "at Elm Street 4", True),  # the same words in another order
        ("4 Elm Street", "at 5 Elm Street", False),
        ("1990-03-04", "born on March 4, 1990.", True),
        ("1990-03-04", "born on the 4th of March 1990", True),
        ("1990-03-04", "03/04/1990", True),
        ("1990-03-04", "4.3.1990", True),  # either order of an ambiguous date
        ("1990-03-04", "04-Mar-1990", True),
        ("1990-03-14", "03/14/90", True),
        ("March 4, 1990", "4. März 1990", True),
        ("04/03/1990", "1990-03-04", True),
        ("1990-03-04", "March 5, 1990", False),
        ("1990-03-04", "March 4, 1991", False),
        ("Zoë Müller", "zoe muller", True),
        ("北京", "她住在北京市", True),
        ("Москве", "Она живёт в Москве", True),
        ("Она живёт в Москве", "ОНА ЖИВЁТ В МОСКВЕ!", True),
        ("a silver compass", "They found the silver compass.", True),
        ("AB-12-3C", "plate AB123C", True),
        (LONG, "so w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 it went", True),  # ten words in a row
        (LONG, "w2 w3 w4 w5 w6 w7 w8 w9 w10 and w11", False),
        ("...", "anything ... more", False),
        ("🙂🎉", "It is 🙂 🎉!", True),
        ("1815", "في عام ١٨١٥", True),
        ("९००४२८४९५", "900-42-8495", True),
        ("1,815", "1.815 or 1\u202f815 or 1'815", True),
        ("101", "rooms 100,101,102", True),
        ("1815", "1.816", False),
        ("Lund", "In Lu\u00adnd", True),
        ("محمد", "محـــمد", True),
        ("룬드", "룬드에 산다", True),
        ("룬드", "룬디에 산다", False),
        ("Müller", "Frau Mueller", True),
        ("Mueller", "Frau Müller", True),
        ("Byron, Ada", "Ada Byron", True),
        ("https://www.x.org/ada", "see x.org/ada", True),
        ("BN-E 12-34", "plate B N E 1234", True),
        ("key-" + "a1B2c3D4" * 9, "key-" + "a1B2c3D4" * 5, True),  # cut off
        ("key-" + "a1B2c3D4" * 9, "key-" + "a1B2c3D4" * 3, False),
        ("Rome", "", False),
        ("900-42-8495", "nine zero zero, four two, eight four nine five", True),
        ("900-42-8495", "Neun null null - vier zwei - acht vier neun fünf.", True),
        ("900-42-8495", "nine zero zero, four two, eight four nine six", False),
        ("Rome", "It is spelled R-o-m-e.", True),
        ("Rome", "R O M A", False),
        ("one", "o n e", True),
    ],
)
def test_a_leak_is_found_in_every_spelling(secret: str, text: str, expected: bool) -> None:
    assert leaked(secret, text) is expected


SPELLINGS = {  # secret: other spellings | other secrets
    "1990-05-03": "3rd of May 1990; third of May, 1990; May the third, nineteen ninety; "
    "3. 5. 1990; am dritten Mai 1990; am 3ten Mai neunzehnhundertneunzig; "
    "le trois mai 1990; 3 May '90; 3-V-1990; 1990年5月3日; May 3rd in the year 1990; May 3 (1990) "
    "| fourth of May 1990; May third, nineteen ninety-one; third of June 1990",
    "May 23, 1984": "May twenty-third, nineteen eighty-four; dreiundzwanzigster Mai 1984; "
    "veintitrés de mayo de mil novecientos ochenta y cuatro | May twenty-second, 1984",
    "2007-06-05": "June fifth, two thousand and seven; June 5, twenty oh seven | June 5, 2017",
    "1984": "nineteen eighty-four; neunzehnhundertvierundachtzig | nineteen eighty-five",
    "1905": "nineteen oh five; nineteen-oh-five | nineteen fifty",
    "250000": "two hundred and fifty thousand; 250k; 0.25 million | two hundred fifty; 25k",
    "3 million": "3,000,000; three million; 3000000 | 3 billion; 3",
    "1,500 million": "1.5 billion; 1500000000 | 1,500 billion; 1,500,000",
    "1": "1st place: 1 | one of them; once",
    "11": "eleven; onze | once upon a time; elf",
    "two sisters": "2 sisters | two brothers; 12 sisters",
    "5th Avenue": "Fifth Ave | Sixth Ave; 5 Elm",
    "Louis XIV": "Louis 14; Louis the Fourteenth | Louis XV; Louis 15",
    "Straße": "STRASSE; strasse | Strass",
    "Jäger": "Jaeger; JÄGER; Jager | Jage",
    "Hauptstraße 5": "Hauptstr. 5; Hauptstrasse 5; Haupt-Straße 5 | Hauptstr. 6; Nebenstr. 5",
    "$1,500": "1500 dollars; USD 1500; $1,500.00; one thousand five hundred | $15,000; $1,501",
    "1500 EUR": "1.500 €; €1,500; 1500 Euro | 1600 EUR",
    "5 km": "5 kilometres; 5km; five kilometers | 5 miles; 6 km",
    "30 percent": "30 %; 30%; thirty per cent | 13 %",
    "6 ft 2 in": "6'2\"; six feet two inches | 6'3\"",
    "3:30 pm": "15:30; 3.30 p.m. | 3:30 am; 14:30",
    "+49 30 1234567": "0049 30 1234567; 030/1234567; +49 (0)30 1234567; 30 1234567 "
    "| +44 30 1234567; 030 1234568",
    "030 1234567": "+49 30 1234567; (030) 12 34 567 | 040 1234567",
    "202-555-0143": "+1 (202) 555-0143; two oh two, triple five, oh one four three; 2025550143 "
    "| 202-555-0144; double five",
    "a_b@x.org": "a underscore b at x dot org; a_b_at_x_dot_org; a_b [at] x [punkt] org; "
    "a_b%40x.org | a_c at x dot org; a dash b at x dot org",
    "John": "J-O-H-N; J. O. H. N.; j o h n; J|O|H|N; J—O—H—N; Juliett Oscar Hotel November; "
    "J as in Julia, O as in Otto, H as in Hans, N as in Nora; Jo-hn; J0hn; **Jo**hn; <b>J</b>ohn; "
    "&#74;ohn; J\u200bo\u200bhn; J\u043ehn; \uff2aohn "
    "| J-O-H-N-S-O-N; J-O-A-N; Johnson; J0an; Oscar met Hotel",
    "Москва": "Mocквa; МОСКВА | Москвич",
    "900428495": "９００４２８４９５; 90O428495; 900\u2060428495 | 90O428496",
    "Anna Weber": "Weber, Anna; Anna<br>Weber; A-n-n-a W-e-b-e-r; anna_weber | Anna Maria Weber",
    "Saint Mary's": "St. Mary's | Street Mary",
    "1990": "May 12, 1990; 1990-05-12; 12.5.1990; MCMXC | May 12, 1991; 1990s",
    "12 May": "May 12; the twelfth of May; 12/05; 12 May 1990; 1990-05-12; XII May "
    "| May 13; 12 June; in May; 12; I may go",
    "1 May": "May 1st | I may go",
    "May 1990": "05/1990; 1990-05; May of 1990; 12 May 1990; 12.5.1990 | May 1991; 06/1990; in May",
    "the 12th": "May 12th, 1990; twelfth | May 13, 1990; 12 people",
    "March": "12 March 1990; 1990-03-12 | 12 May 1990",
    "Jan": "Jan | 12 January 1990",
    "12": "twelve; a dozen; one dozen; ein Dutzend | May 12, 1990; several dozen people; dozens",
    "6 eggs": "half a dozen eggs; ein halbes Dutzend eggs | a dozen eggs",
    "12 May 1990": "May-12-1990; 12/May/1990; 19900512; 12 мая 1990; 12 mei 1990; 12 maja 1990; "
    "day: 12, month: 5, year: 1990; {'year': 1990, 'month': 'May', 'day': 12}; XII May MCMXC; "
    "**12** **May** 1990; 1990-05-12T10:00:00+02:00; 12\\tMay\\t1990 "
    "| 1990-05-13T12:05:00Z; 19900513; 12 May 1991; month: 5, year: 1990",
    "1990-05-12T00:00:00Z": "12 May 1990; 1990-05-12 | 13 May 1990",
    "1990-05-12T23:30:00Z": "May 12, 1990 at 11:30 pm; 12 May 1990 | May 13, 1990 at 11:30 pm",
    "12 May 1990 at 10:30": "May 12, 1990; 10:30 on 12 May 1990 | 10:30; 12 May 1991 at 10:30",
    "1990-05-12": "12 Mayıs 1990; 12 MAYIS 1990; 12. toukokuuta 1990; 12. května roku 1990; "
    "1990. május 12.; 12 травня 1990; 12 Μαΐου 1990; 12. svibnja 1990; 12 مايو 1990; "
    "1990. gada 12. maijs; 1990 m. gegužės 12 d.; ngày 12 tháng 5 năm 1990; 1990년 5월 12일; "
    "5月12日1990年; 12.Mai 1990; 12/5-1990; 12|05|1990; 12 5 1990; 1990-W19-6; 1990W196; 1990-132; "
    "the 132nd day of 1990; May 1990, on the 12th; in 1990, on May 12; on 12 May she was born, in "
    "the year 1990 | 12 Haziran 1990; 1990-W20-6; 1990-133; page 132 of 1990; 12 people in May, "
    "1990 others; at 12 in May 1990; 12 May 1991, not 1990",
    "Ada Byron": "BYRON Ada; AdaByron; @ada_byron | Ada Lovelace",
    "A. Byron": "A. Byron; Byron, A. | B. Byron",
    "Dr. Jane Smith": "Jane Smith; Doctor Jane Smith | Dr. Jane Smithson; John Smith",
    "Łódź": "Lodz; ŁÓDŹ | Lotz",
    "Øystein": "Oystein; Oeystein | Eystein",
    "Çağrı Işık": "Cagri Isik; ÇAĞRI IŞIK; Işık, Çağrı | Çağrı Akın",
    "+1 202-555-0143": "tel:+1-202-555-0143; 001 202 555 0143; (202) 555-0143 "
    "| +44 202-555-0143; 202-555-0144",
    "07700 900123": "+44 7700 900123; +44 (0)7700 900123; 7700 900123 | 07700 900124",
    "GB29 NWBK 6016 1331 9268 19": "GB29NWBK60161331926819; gb29-nwbk-6016-1331-9268-19 "
    "| GB29NWBK60161331926818; DE29 NWBK 6016 1331 9268 19",
    "4111 1111 1111 1234": "4111111111111234; 4111-1111-1111-1234; 411111 1111111234 "
    "| 4111 1111 1111 1243",
    "ada.b@x.org": "ada.b -at- x -dot- org; ada.b*at*x*dot*org; ada dot b at x dot org; "
    "ada punto b chiocciola x punto org; username: ada.b, domain: x.org; ada.b at the domain x.org "
    "| ada.b@x.com; ada at x dot org",
    "$1,500 ": "1500 US dollars; 1,500 USD | $15,00; $1,500,000; $150",
    "€1.500,50": "1500.50 euros; EUR 1,500.50; 1’500.50 EUR | €1.500; 1500.51 euros",
    "54,300": "54300; 54.300; 54 300; $54,300; fifty-four thousand three hundred "
    "| 154,300; 54,300,000; 154300; 54,301; 5,430",
    "10115": "10115 Berlin; D-10115 | 110115; 101150",
    "54 300 €": "54,300 euros; 54300 EUR; €54.300; €54 300 | 54 301 €; 154 300 €",
    "$54,300": "about 54 300 a year; $ 54 300; 54.3k dollars | $54 300 000; $154 300",
    "5 ft 11 in": "5\u203211\u2033; 5\u201911\u201d; 5 feet 11 inches | 5\u203210\u2033",
    "120 zł": "120 PLN; 120 złotych; PLN 120 | 120 EUR; 1200 zł",
    "1200 kr": "1.200 kronor; 1200 SEK; 1,200 kroner | 1200 m; 120 kr",
    "₹1,50,000": "150000 rupees; INR 150000; 1.5 lakh rupees | 15000 rupees",
    "2.5 million": "2,500,000; two and a half million; 2.5 mln | 25 million; 2.5 billion; 2.5",
    "$85,000 per year": "85,000 dollars a year; $85k/year; $85,000 annually | $85,000 per month",
    "192.168.1.17": "192 dot 168 dot 1 dot 17 | 192.168.1.170; 192.168.1.71",
    "5": "five; 5. | 0.5; 5.3; 5,3; 5,000; 15; 3:05",
    "23": "twenty-three; twenty three; dreiundzwanzig; vingt-trois; veintitrés; 23.0 "
    "| twenty-four; twenty years and three days; dreiundvierzig; 23.5; $23,000; 1923",
    "42 Baker Street, London": "Baker Street 42 in London; London, 42 Baker Street "
    "| 24 Baker Street, London; Baker Street, London",
    "Anna, Ben and Carl": "Carl, Ben and Anna; - Anna\n- Ben\n- Carl | Anna and Carl",
    "Rome or Milan": "Rome; Milan; Milan or Rome | Naples; or",
    "AC/DC": "AC/DC; AC DC | AC; DC",
    "Harvard University": "the University of Harvard | Oxford University",
    "19900512": "12 May 1990 | 12 May 1991",
    "the 1990s": "the nineties; the 90s; the '90s | the eighties; her nineties",
    "4271": "4 2 7 1; 4-2-7-1; 4, 2, 7, 1; four two seven one; forty-two seventy-one; 42 71 "
    "| 4 2 7 1 3; 42-71-33; 4 2 7 2; 142 71",
    "123": "one hundred twenty-three | 1, 2, 3; one two three",
    "1500": "fifteen hundred; 15 hundred; 1.5k | 15",
    "pin 4271": "pin four two seven one | pin four two seven two",
    "A12": "A-1-2 | A-1-3",
    "Annabel": "lebannA; l-e-b-a-n-n-A; QW5uYWJlbA==; Naanory | Annabelle",
    "Smith": "htimS; s-m-i-t-h; 1. S\n2. M\n3. I\n4. T\n5. H; "
    "'S', 'm', 'i', 't', 'h'; S -> m -> i -> t -> h; "
    "\\textbf{Smi}th; [Smi](x.org)th; U21pdGg=; \ua731\u1d0d\u026a\u1d1b\u029c; Smi\ufe0fth "
    "| Smithson; htims; Schmidt",
    "Nadia": "N-a-d-i-a | Aidan",  # Nadia reversed
    "900-42-8495": "5948-24-009 | 5948-24-008",
    "Zoë": "Zo\\u00eb; Zo\\xeb; Zo%C3%AB; Zo&amp;euml;; Zo&#235; | Zo\\u00fc",
    "Tom & Ann": "Tom and Ann; Tom &amp Ann; **Tom** & Ann | Tom or Ann",
    "Ann Weber": "Weber Ann; Ann\\nWeber; Ann\\_Weber; [Ann](a.org) [Weber](b.org) | Ann",
    "In Rome": "Rome; the city of Rome | Lund",
    "in general": "in general | a general",
    "16:00": "4 pm; four in the afternoon; 4 o'clock in the afternoon; 16h00; 16 Uhr; 1600 hours; "
    "16:00:00 | 4 am; 4 in the morning; 16:30; 16",
    "08:05": "8:05; 8:05 am; five past eight | 8:05 pm",
    "noon": "12:00; 12 noon | midnight; afternoon",
    "9:00-17:00": "9 am - 5 pm; 09:00 - 17:00 | 9:00; 9:00-18:00",
    "2 h 15 min": "2h 15min; 2 hours 15 minutes | 2 h 16 min",
    "180 cm": "1.80 m; 1,80 m; 1m80; 1.8 metres | 1.81 m; 180 kg",
    "5 km ": "five-kilometre; 5 kms; 5000 m | 5 m; 50 km; 5 km/h",
    "100 km/h": "100 kilometres per hour; 100 kmh; 100 kph | 100 km; 100 mph",
    "5 lb": "5 pounds; five lbs | 5 oz; 5 kg",
    "5 sqm": "5 m²; five square metres; 5 m2 | 5 m",
    "16 GB": "16 gigabytes | 16 MB",
    "$5.50": "5 dollars and 50 cents; 5.50 USD | $5.51; $5",
    "$0.50": "50 cents | $0.60",
    "$1.5M": "1.5 million dollars; USD 1.5m; $1,500,000; 1500000 | $1.6M; 1.5",
    "2.5": "two and a half; 2½; 2 1/2; two point five | 2",
    "3.14": "three point one four | three point one five",
    "March 4, 1990": "4 Mar 90; 4-Mar-90; 4 March '90; 90-03-04; 4. 3. '90; 4º de março de 1990; "
    "4η Μαρτίου 1990 | 4 Mar 91; 90-03-05; 900-03-04; 90-03-04-12; 4 March 90:30",
    "42 years": "42-year-old; 42 Jahre; 42 ans; 42 años; quarante-deux ans; 42 лет "
    "| 43-year-old; 42 days; 42 months",
    "6 weeks": "six weeks; 42 days; 6 Wochen; 6 semaines | 6 days; 43 days; 6 months",
    "18 months": "1.5 years; 18 Monate; 18 mois | 18 years; 1.4 years",
    "90 seconds": "1.5 minutes; 1,5 Minuten | 1.5 hours; 90 minutes",
    "70 kg": "70 кг; seventy kilos | 70 g",
    "5 km  ": "5 км; 5 kilómetros | 5 м",
    "Nguyễn Văn A": "Nguyen Van A; NGUYEN VAN A; nguyen van a | Nguyen Van B; Nguyen Van",
    "Nguyen An": "An Nguyen; NGUYEN An | Nguyen; Nguyen Binh",
    "Group A streptococci": "group A streptococci; Streptococci of Group A "
    "| a group of streptococci; group B streptococci",
    "No. 7": "number seven; #7; № 7 | No. 8",
}  # fmt: skip


@pytest.mark.parametrize("secret", list(SPELLINGS))
def test_rewritten_secrets_are_found_and_others_are_not(secret: str) -> None:
    same, others = SPELLINGS[secret].split(" | ")
    missed = [text for text in same.split("; ") if not leaked(secret, f"{text}")]
    taken = [text for text in others.split("; ") if leaked(secret, f"It is {text}.")]
    assert (missed, taken) == ([], [])
