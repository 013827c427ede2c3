# SPDX-License-Identifier: MIT
"""Texts on which a tokenizer made from tokenizer.json is compared with others: many, nasty, and the same for the same seed.

A text holds no surrogate, because it could not be a UTF-8 file; and no half of a marker at an end, because many texts are joined
with a marker between them to go through one process.
"""
import random
import unicodedata

SENTENCES = (
    "The quick brown fox jumps over the lazy dog, doesn't it?", "Der Fluß überströmte 1945 die Äcker – ganz plötzlich.",
    "Où est passé l'été ? Ça coûte 12,50 €, à peu près.", "Mañana será otro día; ¿quién sabe? ¡Ojalá!",
    "Широка страна моя родная, много в ней лесов.", "Καλημέρα κόσμε, τι κάνεις σήμερα;", "שלום עולם, מה שלומך היום?",
    "مرحبا بالعالم، كيف حالك اليوم؟", "नमस्ते दुनिया, आज मौसम कैसा है?", "আমি বাংলায় গান গাই।", "ยินดีต้อนรับสู่โลกใบนี้",
    "今日はとても良い天気ですね。散歩に行きましょう。", "我今天早上喝了一杯咖啡，然后去上班。", "오늘은 날씨가 정말 좋네요. 산책할까요?",
    "Xin chào thế giới, hôm nay trời đẹp quá!", "გამარჯობა მსოფლიო", "Բարեւ աշխարհ", "ሰላም ለዓለም", "வணக்கம் உலகம்",
    "မင်္ဂလာပါ ကမ္ဘာလောက",
    "ᚠᛇᚻ᛫ᛒᛦᚦ᛫ᚠᚱᚩᚠᚢᚱ", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!", "𝔗𝔥𝔢 𝕢𝕦𝕚𝕔𝕜 𝖋𝖔𝖝 𝟘𝟙𝟚", "ﬁ ﬂ ﬃ ² ½ ™ ℃ Ⅷ ①",
)
EMOJI = ("😀", "👨‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪", "❤️", "☺", "🧑🏿‍🚀", "#️⃣", "🫠", "\U0001f9ff")
CODE = (
    "int main(void)\n{\n\tprintf(\"%d\\n\", 1 << 3);\n\treturn 0;\n}\n",
    "def f(x):\n    if x > 0:\n        return [i**2 for i in x]\n",
    "<html>\n  <body class=\"a\">\n    <h1>Hi</h1><br/>\n  </body>\n</html>", "SELECT * FROM t WHERE a='b' AND c<>1;--",
    "for (let i=0;i<10;++i){console.log(`${i}`)}", "#!/bin/sh\nset -eu\nfor f in *.c; do cc -c \"$f\" || exit 1; done\n",
    "{\"a\": [1, 2.5e-3, null], \"b\": {\"c\": \"\\u00e9\"}}", "    \t  mixed \t\t indent\r\n\r\n\tx = 0xDEADBEEF;;;;\n",
    "a->b->c==d&&!e||f?:g",
)
SPECIAL = ("<start_of_turn>", "<end_of_turn>", "<mask>", "<unused0>", "<unused98>", "<table>", "</table>", "<h1>", "</h6>", "<b>",
           "<i>", "<code>", "<start_of_image>", "<end_of_image>", "[multimodal]", "<td>", "<strong>", "</a>")
SILENT = ("<bos>", "<eos>", "<pad>", "<unk>")


def _valid(c):
    return not 0xD800 <= c <= 0xDFFF


def scripts(rng):
    """Strings of every block of 64 characters that has any assigned one, in all planes; with spaces, and without."""
    for start in [*range(0, 0x3400, 64), *range(0x3400, 0xD800, 1024), *range(0xF900, 0x20000, 64), *range(0x20000, 0x32000, 4096),
                  0xE0000, 0xE0040, 0xE0100]:
        chars = [chr(c) for c in range(start, start + 64) if _valid(c) and unicodedata.category(chr(c)) not in ("Cn", "Cs")]
        if chars:
            yield "".join(rng.choices(chars, k=12))
            yield " ".join("".join(rng.choices(chars, k=rng.randint(1, 5))) for _ in range(4))


def runs():
    for n in range(1, 73):
        for c in (" ", "\n", "\t"):
            yield c * n
            yield c * n + "x"
            yield "a" + c * n + "the end"
    for n in range(1, 41):
        for m in (1, 2, 5, 31, 32):
            yield "\n" * n + " " * m + "x"
            yield " " * n + "\n" * m
            yield "\t" * n + " " * m + "\t"
    for c in "-=_*#.!?/\\~+ae0,)(<>|'\"`:;":
        for n in (2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 130):
            yield c * n


def periodic(rng, pieces):
    """Pieces that repeat a part: where two merges of one piece may compete for the same characters."""
    texts = [p for p in pieces if any(p.startswith(p[i:]) for i in range(1, len(p)))]
    for p in rng.sample(texts, min(len(texts), 1500)):
        i = next(i for i in range(1, len(p)) if p.startswith(p[i:]))
        yield p[:i] * rng.randint(2, 5) + p
        yield p + p[len(p) - i:]


def controls():
    for c in [*range(0, 32), 127, *range(0x80, 0xA0), 0xAD, 0x200B, 0x200D, 0x200E, 0x2028, 0x2060, 0xFEFF, 0xFFFD, 0xFFFE,
              0xFFFF, 0x10FFFF]:
        yield "a" + chr(c) + "b" + chr(c) * 3
        yield chr(c)


def specials(rng, words):
    for s in (*SPECIAL, "<start_of_turn", "start_of_turn>", "<<b>>", "< b>", "<B>", "<unused99", "<unused7000>", "<unused>"):
        yield s
        yield "a" + s + "b"
        yield "  " + s + "  " + s + "\n\n" + s
    for _ in range(400):
        n = rng.randint(2, 12)
        yield "".join(rng.choice((rng.choice(SPECIAL), rng.choice(words), " ", "  ", "\n", "<", ">", "/")) for _ in range(n))


def mixtures(rng, n, words, pieces):
    codes = [c for c in range(0x20, 0x110000) if _valid(c)]
    for i in range(n):
        kind = i % 6
        k = rng.randint(1, 16)
        if kind == 0:  # pieces, as they are
            yield "".join(rng.choices(pieces, k=k))
        elif kind == 1:  # words
            yield " ".join(rng.choices(words, k=k))
        elif kind == 2:  # anything in Unicode
            yield "".join(chr(c) for c in rng.choices(codes, k=k))
        elif kind == 3:  # noise in ASCII
            yield "".join(chr(rng.randint(32, 126)) for _ in range(3 * k))
        elif kind == 4:  # numbers
            yield " ".join(str(rng.randint(0, 10 ** rng.randint(1, 12))) for _ in range(k))
        else:  # pieces cut anywhere
            yield "".join(p[rng.randint(0, len(p) - 1):] for p in rng.choices(pieces, k=k))


def make(vocab, seed, n):
    """The texts, as (kind, text). vocab: the pieces of tokenizer.json; n: how many mixtures."""
    rng = random.Random(seed)
    pieces = [p.replace("\u2581", " ") for p in vocab if not p.startswith("<")]
    words = [p for p in pieces if p.strip().isalpha()]
    cases = [("empty", "")]
    cases += [("sentence", s) for s in (*SENTENCES, *EMOJI, *CODE, " ".join(SENTENCES), "".join(EMOJI), "\n".join(CODE))]
    for kind, texts in (("script", scripts(rng)), ("run", runs()), ("control", controls()), ("special", specials(rng, words)),
                        ("periodic", periodic(rng, pieces)), ("mixture", mixtures(rng, n, words, pieces))):
        cases += [(kind, t) for t in texts]
    # Where the libraries are known to differ by design: docs/QUANTIZATION.md
    cases += [("silent", f"a{s}b {s}") for s in SILENT]
    marks = ("\u2581", "a\u2581b", "\u2581\u2581 a", " \u2581 \u2581", "\u2581" * 40, "x \u2581\u2581\u2581y")
    return cases + [("mark", t) for t in marks]
