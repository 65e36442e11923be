"""Text that the tests' tokenizers learn from."""

PROSE = [
    "Once upon a time there was a little girl who lived near the old mill with her brothers and her sisters.",
    "The quick brown fox jumps over the lazy dog, and the other dogs look on, thinking of other things.",
    "def count(words):\n    found = {}\n    for word in words:\n        found[word] = 1 + found.get(word, 0)\n",
    "In 1969, 2 men walked on the Moon; 400,000 had worked for it. That is 12345 more than anybody had thought.",
    "Straße über Öl, naïve café, señor mañana, ça va très bien; Größe und Höhe der Türme überraschten ihn.",
    "Привет, мир! Это не первый раз, когда мы говорим о мире. 日本語のテキスト。日本の言葉。",
    "She sells sea shells by the sea shore; the shells that she sells are sea shells, she says, and smiles.",
    "return {key: value for key, value in items if key != other and value is not None}",
] * 3
