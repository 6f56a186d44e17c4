//! Needles in the official wording of RULER (NVIDIA/RULER, `niah`) and in short wordings of our own.

use super::chat::Form;
use super::document::{Document, Weight, estimated_tokens};
use super::haystack::{self, Filler, Item, filler, hide, tear, write};
use super::{Kind, Wish, words};
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;

/// Keys or values of one look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Words,
    Numbers,
    Uuids,
}

impl Look {
    fn make(self, rng: &mut ChaCha8Rng) -> String {
        match self {
            Self::Words => words::key(rng),
            Self::Numbers => words::number(7, rng),
            Self::Uuids => words::uuid(rng),
        }
    }

    /// As RULER calls a value of this look, in the plural.
    fn plural(self) -> &'static str {
        match self {
            Self::Words => "words",
            Self::Numbers => "numbers",
            Self::Uuids => "uuids",
        }
    }
}

/// One setting of RULER's `niah`.
struct Setting {
    filler: Option<Filler>,
    keys: Look,
    values: Look,
    hidden: usize,
    values_per_key: usize,
    asked: usize,
}

impl Setting {
    fn of(kind: Kind, rng: &mut ChaCha8Rng) -> Self {
        let numbers = Self {
            filler: Some(Filler::Essay),
            keys: Look::Words,
            values: Look::Numbers,
            hidden: 1,
            values_per_key: 1,
            asked: 1,
        };
        match kind {
            Kind::NiahMultikey => match rng.random_range(0..6) {
                // Only needles: numbers, or uuids on both sides.
                0 | 1 => Self {
                    filler: None,
                    ..numbers
                },
                2 => Self {
                    filler: None,
                    keys: Look::Uuids,
                    values: Look::Uuids,
                    ..numbers
                },
                _ => Self {
                    filler: Some(Filler::any(rng)),
                    hidden: rng.random_range(2..=6),
                    ..numbers
                },
            },
            Kind::NiahMultivalue => Self {
                values_per_key: rng.random_range(2..=4),
                hidden: rng.random_range(1..=2),
                ..numbers
            },
            Kind::NiahMultiquery => {
                let asked = rng.random_range(2..=4);
                Self {
                    hidden: asked + rng.random_range(0..=2),
                    asked,
                    ..numbers
                }
            }
            _ => Self {
                filler: Some(Filler::any(rng)),
                values: if rng.random_ratio(1, 3) {
                    Look::Uuids
                } else {
                    Look::Numbers
                },
                ..numbers
            },
        }
    }
}

/// A needle in RULER's wording.
fn needle(values: Look, key: &str, value: &str) -> Item {
    vec![
        (
            format!("One of the special magic {} for", values.plural()),
            Weight::Wording,
        ),
        (format!(" {key}"), Weight::Unpredictable),
        (" is:".to_owned(), Weight::Wording),
        (format!(" {value}"), Weight::Unpredictable),
        (".".to_owned(), Weight::Wording),
    ]
}

fn item_tokens(item: &Item) -> usize {
    item.iter().map(|(text, _)| estimated_tokens(text)).sum::<usize>() + 1
}

/// RULER's `niah` in all its settings. Beyond the official question, a training document goes on asking about other
/// needles, in the same words.
pub(super) fn niah(kind: Kind, wish: Wish, rng: &mut ChaCha8Rng) -> Document {
    let setting = Setting::of(kind, rng);
    let plural = setting.values.plural();
    let mut pairs: Vec<(String, Vec<String>)> = Vec::new();
    let mut needles = Vec::new();
    let mut budget = wish.tokens.saturating_sub(90);
    let question_cost = 24 + 2 * item_tokens(&needle(setting.values, "small-boat", &setting.values.make(rng)));
    let mut add = |rng: &mut ChaCha8Rng, budget: &mut usize| {
        let key = setting.keys.make(rng);
        let values = words::distinct(setting.values_per_key, || setting.values.make(rng));
        for value in &values {
            let item = needle(setting.values, &key, value);
            *budget = budget.saturating_sub(item_tokens(&item));
            needles.push(item);
        }
        pairs.push((key, values));
    };
    for _ in 0..setting.hidden {
        add(rng, &mut budget);
    }
    let more = if wish.single_question {
        0
    } else {
        rng.random_range(0..4).min(budget / question_cost / 2)
    };
    budget = budget.saturating_sub(more * question_cost);
    if setting.filler.is_none() {
        while budget > 40 {
            add(rng, &mut budget);
            if setting.keys == Look::Uuids && budget < 90 {
                break;
            }
        }
    }
    // Values of one key must stay in the order in which they are asked for; the order of keys is free.
    if setting.values_per_key == 1 {
        needles.shuffle(rng);
    }
    let kind_of_filler = setting.filler.unwrap_or(Filler::Noise);
    let mut items = match setting.filler {
        Some(kind) => hide(filler(kind, budget, rng), needles, rng),
        None => needles,
    };
    if wish.torn {
        tear(&mut items, rng);
    }

    let mut document = Document::new(kind);
    let form = Form::of(wish, rng);
    form.open(&mut document);
    let first_is_single = setting.asked * setting.values_per_key == 1;
    let (start, noun) = if first_is_single {
        ("A special magic number is hidden", plural.trim_end_matches('s'))
    } else {
        ("Some special magic numbers are hidden", plural)
    };
    let start = start.replace("number", if plural == "uuids" { "uuid" } else { "number" });
    document.push(
        &format!(
            "{start} within the following text. Make sure to memorize it. I will quiz you about the {noun} afterwards.\n"
        ),
        Weight::Wording,
    );
    write(&items, kind_of_filler.joiner(), &mut document);
    pairs.shuffle(rng);
    let mut asked = pairs.chunks(setting.asked);
    for turn in 0..=more {
        let Some(pairs) = asked.next().filter(|pairs| pairs.len() == setting.asked) else {
            break;
        };
        if turn > 0 {
            form.next_question(&mut document);
        } else {
            document.push("\n", Weight::Wording);
        }
        ask(&mut document, form, pairs, noun, first_is_single);
    }
    form.close(&mut document);
    document
}

/// Question, answer prefix and answer of `niah`.
fn ask(document: &mut Document, form: Form, pairs: &[(String, Vec<String>)], noun: &str, single: bool) {
    let keys: Vec<&str> = pairs.iter().map(|(key, _)| key.as_str()).collect();
    let query = listed(&keys);
    let (question, verb) = if single {
        ("What is the", "is")
    } else {
        ("What are all the", "are")
    };
    document.push(&format!("{question} special magic {noun} for"), Weight::Wording);
    document.push(&format!(" {query}"), Weight::Unpredictable);
    document.push(" mentioned in the provided text?", Weight::Wording);
    form.answer(document);
    document.push(&format!(" The special magic {noun} for"), Weight::Wording);
    document.push(&format!(" {query}"), Weight::Repeated);
    document.push(&format!(" mentioned in the provided text {verb}"), Weight::Wording);
    let values: Vec<&String> = pairs.iter().flat_map(|(_, values)| values).collect();
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            let last = index + 1 == values.len();
            document.push(if last { ", and" } else { "," }, Weight::Language);
        }
        document.push(&format!(" {value}"), Weight::Answer);
    }
    document.push(".", Weight::Language);
}

/// `a`, `a, and b`, `a, b, and c`: RULER's way to list the keys of a question.
fn listed(items: &[&str]) -> String {
    match items {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [most @ .., last] => format!("{}, and {last}", most.join(", ")),
    }
}

/// A wording for hiding and asking: `{k}` the key, `{v}` the value, which ends the answer.
const WORDINGS: [(&str, &str); 8] = [
    (
        "One of the special magic numbers for {k} is: {v}.",
        "What is the special magic number for {k} mentioned in the provided text? The special magic number for {k} mentioned in the provided text is {v}",
    ),
    (
        "The code of {k} is {v}.",
        "What is the code of {k}? The code of {k} is {v}",
    ),
    ("Remember that {k} has the number {v}.", "The number of {k} is {v}"),
    ("{k}: {v}.", "{k}: {v}"),
    ("{k} = {v}.", "The value of {k} is {v}"),
    (
        "You should know that {k} goes with {v}.",
        "Question: what goes with {k}? Answer: {v}",
    ),
    ("The secret of {k} is {v}.", "Tell me the secret of {k}. It is {v}"),
    ("Line {k} says {v}.", "What does line {k} say? It says {v}"),
];

/// Needles and questions mixed through a text: every question lies anywhere after its needle, several times over, in one
/// of several wordings. The densest source of retrieval, and the one without any fixed start or end.
pub(super) fn needle_stream(wish: Wish, rng: &mut ChaCha8Rng) -> Document {
    let mut document = Document::new(Kind::Needle);
    let (hiding, asking) = WORDINGS[rng.random_range(0..WORDINGS.len())];
    let looks = match rng.random_range(0..6) {
        0 => (Look::Words, Look::Uuids),
        1 => (Look::Uuids, Look::Numbers),
        2 => (Look::Numbers, Look::Words),
        _ => (Look::Words, Look::Numbers),
    };
    let digits = rng.random_range(4..=8);
    let value = |rng: &mut ChaCha8Rng| match looks.1 {
        Look::Numbers => words::number(digits, rng),
        look => look.make(rng),
    };
    let joiner = Filler::any(rng).joiner();
    let kind = Filler::any(rng);
    let density = rng.random_range(0.1..0.6);
    let mut known: Vec<(String, String)> = Vec::new();
    let mut used = 0;
    while used < wish.tokens {
        let roll = rng.random_range(0.0..1.0);
        let items: Vec<Item> = if known.is_empty() || roll < density * 0.5 {
            let pair = (looks.0.make(rng), value(rng));
            let item = fill(hiding, &pair, Weight::Unpredictable, Weight::Unpredictable);
            known.push(pair);
            vec![item]
        } else if roll < density {
            let pair = known.choose(rng).expect("one is known");
            vec![fill(asking, pair, Weight::Unpredictable, Weight::Answer)]
        } else {
            let mut items = filler(kind, rng.random_range(1..40), rng);
            if wish.torn {
                tear(&mut items, rng);
            }
            items
        };
        used += items.iter().map(item_tokens).sum::<usize>();
        if !document.text().is_empty() && !items.is_empty() {
            document.push(joiner, Weight::Wording);
        }
        write(&items, joiner, &mut document);
    }
    document
}

/// Puts key and value into a wording. The first key has weight `key`; one that comes again can be copied.
fn fill(wording: &str, (key, value): &(String, String), first: Weight, last: Weight) -> Item {
    let mut item = Vec::new();
    let mut text = String::new();
    let mut rest = wording;
    let mut seen = false;
    while let Some(at) = rest.find('{') {
        let slot = &rest[at..at + 3];
        // A space belongs to what it introduces.
        let before = &rest[..at];
        let space = before.ends_with(' ');
        text.push_str(before.strip_suffix(' ').unwrap_or(before));
        if !text.is_empty() {
            item.push((std::mem::take(&mut text), Weight::Wording));
        }
        let (what, weight) = match (slot, seen) {
            ("{k}", false) => (key, first),
            ("{k}", true) => (key, Weight::Repeated),
            _ => (value, last),
        };
        seen |= slot == "{k}";
        item.push((format!("{}{what}", if space { " " } else { "" }), weight));
        rest = &rest[at + 3..];
    }
    if !rest.is_empty() {
        item.push((rest.to_owned(), Weight::Wording));
    }
    item
}

/// InfiniteBench's pass key and number string, and their continuations.
pub(super) fn passkey(kind: Kind, wish: Wish, rng: &mut ChaCha8Rng) -> Document {
    let (start, name) = if kind == Kind::Passkey {
        ("Find it and memorize them.", "pass key")
    } else {
        ("Find it.", "sequence of digits")
    };
    // The number string is ten digits of which each comes several times in a row.
    let value = if kind == Kind::Passkey {
        words::number(rng.random_range(5..=6), rng)
    } else if rng.random_bool(0.7) {
        let run = rng.random_range(1..=4);
        let distinct = words::number(10 / run.max(1) as u32, rng);
        distinct
            .chars()
            .flat_map(|digit| std::iter::repeat_n(digit, run))
            .take(10)
            .collect()
    } else {
        words::number(10, rng)
    };
    let needle = vec![
        (format!("The {name} is"), Weight::Wording),
        (format!(" {value}"), Weight::Unpredictable),
        (". Remember it.".to_owned(), Weight::Wording),
        (format!(" {value}"), Weight::Repeated),
        (format!(" is the {name}."), Weight::Wording),
    ];
    let kind_of_filler = if rng.random_bool(0.7) {
        Filler::Noise
    } else {
        Filler::any(rng)
    };
    let budget = wish.tokens.saturating_sub(100);
    let mut items = hide(filler(kind_of_filler, budget, rng), vec![needle], rng);
    if wish.torn {
        tear(&mut items, rng);
    }
    let mut document = Document::new(kind);
    let form = Form::of(wish, rng);
    form.open(&mut document);
    let head = format!(
        "There is an important info hidden inside a lot of irrelevant text. {start} I will quiz you about the important \
         information there.\n\n"
    );
    document.push(&head, Weight::Wording);
    let joiner = ["\n", " "].choose(rng).expect("two joiners");
    write(&items, joiner, &mut document);
    document.push(&format!("\n\nWhat is the {name}?"), Weight::Wording);
    form.answer(&mut document);
    let prefix = if form.is_chat() {
        ["", "The pass key is"].choose(rng)
    } else {
        ["", "\n\nThe pass key is", "\nThe pass key is", " The pass key is"].choose(rng)
    };
    let prefix = prefix.expect("there are prefixes").replace("pass key", name);
    document.push(&prefix, Weight::Wording);
    // A chat answer begins at its line's start.
    let space = if form.is_chat() && prefix.is_empty() { "" } else { " " };
    document.push(&format!("{space}{value}"), Weight::Answer);
    document.push(".", Weight::Language);
    form.close(&mut document);
    document
}

/// InfiniteBench's key-value retrieval: a JSON object of uuids.
pub(super) fn key_value(wish: Wish, rng: &mut ChaCha8Rng) -> Document {
    const PAIR_TOKENS: usize = 82;
    const QUESTION_TOKENS: usize = 170;
    let more = if wish.single_question {
        0
    } else {
        rng.random_range(0..3)
    };
    let pairs = (wish.tokens.saturating_sub(QUESTION_TOKENS + more * 60) / PAIR_TOKENS).max(2);
    let keys = words::distinct(pairs, || words::uuid(rng));
    let pairs: Vec<(String, String)> = keys.into_iter().map(|key| (key, words::uuid(rng))).collect();
    let mut order: Vec<usize> = (0..pairs.len()).collect();
    order.shuffle(rng);

    let mut document = Document::new(Kind::KeyValue);
    let form = Form::of(wish, rng);
    form.open(&mut document);
    let (key, _) = &pairs[order[0]];
    document.push("Extract the value corresponding to the specified key", Weight::Wording);
    document.push(&format!(" {key}"), Weight::Unpredictable);
    document.push(" in the JSON object below.\n\nJSON data:\n{", Weight::Wording);
    for (index, (key, value)) in pairs.iter().enumerate() {
        document.push(if index == 0 { "\"" } else { ", \"" }, Weight::Wording);
        document.push(key, Weight::Unpredictable);
        document.push("\": \"", Weight::Wording);
        document.push(value, Weight::Unpredictable);
        document.push("\"", Weight::Wording);
    }
    document.push("}", Weight::Wording);
    for (turn, &asked) in order.iter().take(more + 1).enumerate() {
        let (key, value) = &pairs[asked];
        if turn == 0 {
            document.push("\n\n", Weight::Wording);
        } else {
            form.next_question(&mut document);
        }
        document.push("Key: \"", Weight::Wording);
        document.push(
            key,
            if turn == 0 {
                Weight::Repeated
            } else {
                Weight::Unpredictable
            },
        );
        document.push("\"\nThe value associated with the specified key is:", Weight::Wording);
        form.answer(&mut document);
        let quoted = rng.random_bool(0.5);
        // The official question ends in a space, which is then a token of its own before the answer.
        document.push(if form.is_chat() { "" } else { " " }, Weight::Wording);
        document.push(if quoted { "\"" } else { "" }, Weight::Unpredictable);
        document.push(value, Weight::Answer);
        document.push(if quoted { "\"" } else { "" }, Weight::Language);
    }
    form.close(&mut document);
    document
}

/// RULER's variable tracking: a chain of assignments in noise, after a short solved example.
pub(super) fn variable_tracking(wish: Wish, rng: &mut ChaCha8Rng) -> Document {
    let hops = if wish.single_question {
        4
    } else {
        rng.random_range(1..=4)
    };
    let example = wish.tokens > 330 && (wish.single_question || rng.random_bool(0.5));
    let mut document = Document::new(Kind::VariableTracking);
    let form = Form::of(wish, rng);
    form.open(&mut document);
    let mut rest = wish.tokens.saturating_sub(40);
    if example {
        let used = 200.min(rest / 3);
        chain(
            &mut document,
            Form::Completion,
            Chain {
                letters: 3,
                hops,
                tokens: used,
                torn: false,
            },
            rng,
        );
        document.push("\n\n", Weight::Wording);
        rest -= used;
    }
    chain(
        &mut document,
        form,
        Chain {
            letters: 5,
            hops,
            tokens: rest,
            torn: wish.torn,
        },
        rng,
    );
    form.close(&mut document);
    document
}

struct Chain {
    letters: usize,
    hops: usize,
    tokens: usize,
    torn: bool,
}

fn chain(document: &mut Document, form: Form, chain: Chain, rng: &mut ChaCha8Rng) {
    const ASK_TOKENS: usize = 75;
    let names = words::distinct(chain.hops + 1, || {
        (0..chain.letters)
            .map(|_| char::from(rng.random_range(b'A'..=b'Z')))
            .collect()
    });
    let value = words::number(5, rng);
    let mut assignments: Vec<Item> = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let mut item = vec![
            ("VAR".to_owned(), Weight::Wording),
            (format!(" {name}"), Weight::Unpredictable),
            (" =".to_owned(), Weight::Wording),
        ];
        if index == 0 {
            item.push((format!(" {value}"), Weight::Unpredictable));
        } else {
            item.push((" VAR".to_owned(), Weight::Wording));
            item.push((format!(" {}", names[index - 1]), Weight::Unpredictable));
            item.push((" ".to_owned(), Weight::Wording));
        }
        assignments.push(item);
    }
    let own = assignments.iter().map(item_tokens).sum::<usize>() + names.len() * (chain.letters + 1);
    let mut noise = filler(Filler::Noise, chain.tokens.saturating_sub(ASK_TOKENS + own), rng);
    if chain.torn {
        tear(&mut noise, rng);
    }
    let items = hide(noise, assignments, rng);
    document.push(
        "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n",
        Weight::Wording,
    );
    haystack::write(&items, "\n", document);
    document.push(
        "\nQuestion: Find all variables that are assigned the value",
        Weight::Wording,
    );
    document.push(&format!(" {value}"), Weight::Unpredictable);
    document.push(" in the text above.", Weight::Wording);
    form.answer(document);
    let count = names.len().to_string();
    document.push(
        &format!(
            " Answer: According to the chain(s) of variable assignment in the text above, {count} variables are assigned \
             the value"
        ),
        Weight::Wording,
    );
    document.push(&format!(" {value}"), Weight::Repeated);
    document.push(", they are:", Weight::Wording);
    for name in &names {
        document.push(&format!(" {name}"), Weight::Answer);
    }
    document.push("\n", Weight::Language);
}
