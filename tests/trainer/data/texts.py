"""Real text in several scripts: article 1 of the Universal Declaration of Human Rights, whose translations are free to use.

The last is a tweet's mix of emoji, joined emoji and accents.
"""

from __future__ import annotations

# Greek letters are Greek

TEXTS = {
    "english": "All human beings are born free and equal in dignity and rights.",
    "french": "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
    "vietnamese": "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền.",
    "arabic": "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
    "chinese": "人人生而自由,在尊严和权利上一律平等。",
    "hindi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "greek": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "emoji": "I ❤️ this café 👩‍👩‍👧‍👦 so much 🎉🎉 naïve?",
}
# What they answer, in the same script.
ANSWERS = {
    "english": "They are endowed with reason and conscience.",
    "french": "Ils sont doués de raison et de conscience.",
    "vietnamese": "Mọi con người đều được tạo hóa ban cho lý trí và lương tâm.",
    "arabic": "وقد وهبوا عقلاً وضميرًا.",
    "chinese": "他们赋有理性和良心。",
    "hindi": "उन्हें बुद्धि और अन्तरात्मा की देन प्राप्त है।",
    "greek": "Είναι προικισμένοι με λογική και συνείδηση.",
    "emoji": "Merci 🙏🏽 à bientôt 😀!",
}
CORPUS = [
    *TEXTS.values(),
    *ANSWERS.values(),
    "### Text: ",
    "### Label: ",
    "\n### Antwort é: ",
    "user assistant system",
]
