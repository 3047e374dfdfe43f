"""200,000 characters of everything: what a tokenizer may meet."""

import random
import unicodedata

LINES = [
    "The quick brown fox jumps over the lazy dog. It's 3.14159, isn't it? (No!)",
    "def f(x, *, y=10):\n    '''doc'''\n\treturn x[1:-1] ** 2  # 100%\n\n\nclass A:\n        pass\n",
    '#include <stdio.h>\nint main(void) { printf("%d\\n", 0xDEADBEEF); return 0; }\n',
    "\\begin{equation} \\sum_{i=0}^{n} \\frac{a_i}{b_i} \\end{equation}",
    "SELECT a, COUNT(*) FROM t WHERE b LIKE '%x%' GROUP BY a;  -- comment",
    '{"key": [1, 2.5e-10, null, true], "ключ": "значение"}',
    "你好，世界。今天天气很好。我们去公园散步吧！𠮷野家",
    "こんにちは世界、カタカナとひらがな。ﾊﾝｶｸ",
    "안녕하세요 세계. 오늘은 날씨가 좋네요.",
    "Привет, мир! Съешь же ещё этих мягких французских булок.",
    "Ελληνικά: Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. ἄνθρωπος",
    "עברית: דג סקרן שט בים. שָׁלוֹם",
    "العربية: صِف خَلقَ خَودِ كَمِثلِ الشَمسِ",
    "हिन्दी: ऋषियों को सताने वाले दुष्ट राक्षसों के राजा",
    "தமிழ் తెలుగు ಕನ್ನಡ മലയാളം සිංහල ไทย ລາວ မြန်မာ ភាសាខ្មែរ བོད་ཡིག ქართული հայերեն አማርኛ ᏣᎳᎩ ᚠᚢᚦᚨᚱᚲ",
    "👩‍👩‍👧‍👦 🙂 🏳️‍🌈 ☃️ 🇩🇪🇫🇷 👍🏽 🤷🏿‍♀️ ❤️‍🔥 🧑‍💻",
    "e\u0301 n\u0303 a\u0308\u0304 Z̷̢̛a̴l̶g̵o̷ ﷽ ﬁ ﬂ Ǆ ½ ² ³ ₂ ① Ⅷ ㎏ ｆｕｌｌ",
    "▁ ▁▁ a▁b ▁▁▁▁word <0x0A> <0xE2> <unk",
    "\u00a0\u2003\u200b\u200d\u2060\ufeff\u00ad\u202e\u2028\u2029\u3000",
    "\0\x01\x02\x07\x08\x0b\x0c\x1b[31m\x7f\x80\x9f\ufffd\ufffe\U0010ffff\U000e0001",
    "= - _ * # ~ . , ; : ! ? / \\ | @ $ % ^ & ( ) [ ] { } < > ` ' \"",
    "===== ----- _____ ***** ##### ~~~~~ ..... !!!!! ????? ////// |||||| ======== --------",
    "1 12 123 1234 12345 0.1 1e10 1,000,000 ١٢٣ १२३ ➊ ²",
    "http://example.org/a/b?c=d&e=%20#f user.name+tag@example.org C:\\Users\\x",
    "a" * 50 + "é" * 20 + "ab" * 30 + "的" * 17,
]
RUNS = [" ", "\n", "\t", "\r\n", " \n", "\n ", "▁", "  \t", "-", "=", "0", "\0"]


def mixed_text(length: int = 200_000) -> str:
    random_ = random.Random(0)
    known = [chr(code) for code in range(0x30000) if unicodedata.category(chr(code)) not in ("Cs", "Cn")]
    parts: list[str] = []
    size = 0
    while size < length:
        kind = random_.random()
        if kind < 0.55:
            part = random_.choice(LINES)
        elif kind < 0.75:
            part = random_.choice(RUNS) * random_.randint(1, 40)
        elif kind < 0.9:
            part = "".join(random_.choices(known, k=random_.randint(1, 30)))
        else:
            words = random_.choice(LINES).split()
            part = " ".join(random_.choices(words, k=random_.randint(1, 12)))
        parts.append(part + random_.choice(["", " ", "\n", ""]))
        size += len(parts[-1])
    return "".join(parts)[:length]
