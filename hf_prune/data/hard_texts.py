"""Texts on which tokenizers differ: numbers, spaces, code, accents, scripts, emoji, contractions, special tokens."""

import json
import unicodedata
from typing import Any

from hf_prune.data.chat_templates import rendered
from hf_prune.data.documents import Chat

PARTS = (
    "Hello world", " leading", "trailing ", "a  b", "a   b    c", "\n", "\n\n", "\n \n\n \t\n", "\t\tx", " \n a",
    "1", "12", "123", "1234", "12345678901234567890", "3.14159", "1,000,000.00", "2024-11-30T05:52:10Z", "0x1F",
    "v1.2.3", "I've", "you'RE", "they'll", "it's John's", "'s't're", "DON'T", "we'd've", "''''", "can’t", "’s",
    "def f(x):\n    return x**2 + 1\n", "for (int i = 0; i < n; ++i) { a[i] += b[i]; }", "x=y!=z==w<=>q",
    "if a&&b||c:", "<div class=\"a-b\">&nbsp;</div>", "SELECT * FROM t WHERE id IN (1,2,3);",
    "#include <stdio.h>\r\n", "\\frac{1}{2}", "https://example.org/a/b?c=d&e=f#g", "me@example.org",
    "snake_case_name", "camelCaseName", "SCREAMING_CASE", "kebab-case", "naïve café", "Straße über Öl",
    "ŁÓDŹ żółw", "español mañana ¿qué?", "français: « ça »", "İstanbul ıI", "ñandú", "Привет, мир!",
    "нещо на Български", "Ελληνικά", "שלום עולם", "مرحبا بالعالم", "हिन्दी में", "বাংলা", "ภาษาไทย",
    "我想在apple工作1314151天～", "日本語のテキスト。", "한국어 문장입니다", "中文，标点！", "កាន់តែពិសេសអាច",
    "ქართული", "🚀", "😶\u200d🌫️", "🦙🦙 ✅", "👨\u200d👩\u200d👧\u200d👦", "🇩🇪🇫🇷", "a🙂b", "❤️",
    "\U0001f9ff\U0001fae0", "e\u0301 combining", "a\u0308o\u0308", "zero\u200bwidth", "nb\u00a0sp", "\u3000wide",
    "soft\u00adhyphen", "ﬁ ﬂ", "①②③", "½ ⅓ ²³", "€100 £5 ¥20", "50% + 3‰", "→ ⇒ ∀x∈ℝ", "“quoted” ‘text’",
    "…ellipsis…", "em—dash–en", "~~~~", "------=======", "......!!!!!!??????", "```````\"\"\"\"",
    "((()))[[[]]]{{{}}}", "@#$%^&*", "_", "__init__", "a_b", "$x$", "\\n", "//", "/*c*/", "word." * 8,
    "no1no2no3", "A1B2C3", "aAaAaA", "XMLHttpRequest", "antidisestablishmentarianism", "zzzzzzzzzzzz",
    "The quick brown fox jumps over the lazy dog.", "Once upon a time, there was a little girl named Lily.",
    "To be, or not to be: that is the question.", "In 1969, 2 men walked on the Moon; 400,000 worked for it.",
    "\r\n\r\n", "a\r\nb", "end\n", "  two", "   three", "tab\there", " ", "  ", "a \n", "mixed \t \n \t ws",
    "x" * 200,
)  # fmt: skip
"""More than a hundred, each on its own."""
CHATS = (
    [{"role": "user", "content": "Hi! What is 12 + 30?"}],
    [{"role": "user", "content": "Write code."}, {"role": "assistant", "content": "print('ok')\n"},
     {"role": "user", "content": "Danke für die 🦙!"}],
)  # fmt: skip


def hard_texts(tokenizer: Any) -> tuple[str, ...]:
    """Those, and some between special tokens of this tokenizer, and chats as its template writes them.

    Where it composes characters (NFC), which llama.cpp does not, they are composed: almost all text is.
    """
    special = [str(t) for t in dict.fromkeys(tokenizer.all_special_tokens)][:4]
    framed = [f"{token}user\nHello {token} there{token}" for token in special]
    texts = (*PARTS, *framed, *_chats(tokenizer))
    composes = '"NFC"' in tokenizer.backend_tokenizer.to_str().partition('"model"')[0]
    return tuple(unicodedata.normalize("NFC", t) for t in texts) if composes else texts


def _chats(tokenizer: Any) -> list[str]:
    if not getattr(tokenizer, "chat_template", None):
        return []
    return [rendered(Chat(json.dumps(chat), "a chat"), tokenizer, ask=True) for chat in CHATS]
