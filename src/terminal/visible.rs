//! What others send is data: how a terminal may show it.

use std::borrow::Cow;
use std::fmt::Write;

/// How many characters [`quoted`] shows.
const QUOTED_CHARS: usize = 40;

/// `bytes` as one piece of text that only ever shows, and never does anything to a terminal.
///
/// - Control characters, line endings and tabs among them, become `^[`, `^J`, `^?`: one message
///   can't be made to look like two, nor to lie over another.
/// - Bidi controls, zero-width and other invisible characters, and C1 controls become `<U+202E>`.
/// - What is no UTF-8 becomes U+FFFD.
/// - Some invisible characters belong to how people write, and stay where they do: a variation
///   selector after a character that can have one, and one joiner or non-joiner between two
///   characters of a script or emoji that joins. Anywhere else they hide something.
///
/// Everything else, in any script, is unchanged. It says nothing about widths.
pub fn visible(bytes: &[u8]) -> Cow<'_, str> {
    let text = String::from_utf8_lossy(bytes);
    if text.chars().all(is_plain) {
        return text;
    }
    let mut shown = String::with_capacity(text.len() + 16);
    // The character before, if it went out as it is.
    let mut before = None;
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        let after = rest.clone().next();
        let stays = match c {
            // A selector after a joiner selects nothing, and does not stay itself.
            '\u{200C}' | '\u{200D}' => {
                before.is_some_and(joins) && after.is_some_and(|c| joins(c) && is_plain(c))
            }
            _ if is_selector(c) => before.is_some_and(|base| can_select(base, c)),
            _ => is_plain(c),
        };
        if stays {
            shown.push(c);
            before = Some(c);
        } else {
            push_form(&mut shown, c);
            before = None;
        }
    }
    Cow::Owned(shown)
}

/// How `bytes` begin, in quotes, safe to show: for notices about a line, or about a name that is none.
pub fn quoted(bytes: &[u8]) -> String {
    // No character takes more than four bytes, and one more character shows that there are more.
    let start = visible(&bytes[..bytes.len().min(4 * (QUOTED_CHARS + 1))]);
    let mut chars = start.chars();
    let mut quoted: String = chars.by_ref().take(QUOTED_CHARS).collect();
    if chars.next().is_some() {
        quoted.push('…');
    }
    format!("'{quoted}'")
}

/// Appends the visible form of a character that must not reach a terminal.
fn push_form(shown: &mut String, c: char) {
    match c {
        '\0'..='\x1f' | '\x7f' => {
            shown.push('^');
            shown.push(char::from(c as u8 ^ 0x40));
        }
        // Writing to a String can't fail.
        _ => _ = write!(shown, "<U+{:04X}>", u32::from(c)),
    }
}

/// Whether `c` shows as itself, wherever it stands.
pub(super) fn is_plain(c: char) -> bool {
    !(c.is_control() || is_invisible(c))
}

/// Characters that take no room or reorder others: Unicode's Default_Ignorable_Code_Point, the
/// format characters that are not among them, and the separators of lines and paragraphs.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{00AD}'
            | '\u{034F}'
            | '\u{061C}'
            | '\u{115F}'..='\u{1160}'
            | '\u{17B4}'..='\u{17B5}'
            | '\u{180B}'..='\u{180F}'
            | '\u{200B}'..='\u{200F}'
            | '\u{2028}'..='\u{202E}'
            | '\u{2060}'..='\u{206F}'
            | '\u{3164}'
            | '\u{FE00}'..='\u{FE0F}'
            | '\u{FEFF}'
            | '\u{FFA0}'
            | '\u{FFF0}'..='\u{FFFB}'
            | '\u{1BCA0}'..='\u{1BCA3}'
            | '\u{1D173}'..='\u{1D17A}'
            | '\u{E0000}'..='\u{E0FFF}'
    )
}

/// Whether a joiner may stand next to `c`: not in scripts whose letters never join, where all it
/// could do is to make two words look the same.
fn joins(c: char) -> bool {
    is_emoji_selector(c)
        || c >= '\u{0590}' && !('\u{1E00}'..='\u{1FFF}').contains(&c) && is_plain(c)
}

fn is_emoji_selector(c: char) -> bool {
    matches!(c, '\u{FE0E}' | '\u{FE0F}')
}

fn is_selector(c: char) -> bool {
    matches!(c, '\u{FE00}'..='\u{FE0F}' | '\u{E0100}'..='\u{E01EF}')
}

/// Whether `selector` may follow `base`: emoji and symbols take the one kind, ideographs both.
fn can_select(base: char, selector: char) -> bool {
    let is_ideograph = matches!(
        base,
        '\u{3400}'..='\u{9FFF}' | '\u{F900}'..='\u{FAFF}' | '\u{20000}'..='\u{3FFFF}'
    );
    if is_emoji_selector(selector) {
        let is_symbol = !base.is_alphabetic() && (base >= '\u{A9}' && is_plain(base));
        is_symbol || is_ideograph || matches!(base, '0'..='9' | '#' | '*' | '\u{2139}' | '\u{24C2}')
    } else {
        is_ideograph || matches!(base, '\u{2000}'..='\u{2FFF}') && is_plain(base)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_would_act_on_a_terminal_is_shown_instead() {
        for (what, bytes, shown) in [
            ("title", &b"\x1b]0;owned\x07"[..], "^[]0;owned^G"),
            ("clear screen", b"\x1b[2J\x1b[H", "^[[2J^[[H"),
            ("cursor up", b"hi\x1b[5A\x1b[2K", "hi^[[5A^[[2K"),
            (
                "link",
                b"\x1b]8;;http://x\x1b\\a\x1b]8;;\x1b\\",
                "^[]8;;http://x^[\\a^[]8;;^[\\",
            ),
            ("clipboard", b"\x1b]52;c;aGk=\x07", "^[]52;c;aGk=^G"),
            ("DCS", b"\x1bP+q544e\x1b\\", "^[P+q544e^[\\"),
            ("8-bit CSI in UTF-8", "\u{9b}2J".as_bytes(), "<U+009B>2J"),
            ("8-bit CSI alone", b"\x9b2J", "\u{FFFD}2J"),
            ("next line", "a\u{85}b".as_bytes(), "a<U+0085>b"),
            ("carriage return", b"hello\rHELLO", "hello^MHELLO"),
            ("backspaces", b"no\x08\x08ok\x7f", "no^H^Hok^?"),
            (
                "joiner before a selector",
                "👩\u{200c}\u{fe0f}".as_bytes(),
                "👩<U+200C><U+FE0F>",
            ),
            ("newline", b"hi\nbob: yes", "hi^Jbob: yes"),
            ("tab", b"a\tb", "a^Ib"),
            ("NUL", b"a\0b", "a^@b"),
            ("shift out", b"\x0e", "^N"),
            (
                "override",
                "a\u{202e}b\u{202c}".as_bytes(),
                "a<U+202E>b<U+202C>",
            ),
            (
                "isolate",
                "\u{2066}a\u{2069}".as_bytes(),
                "<U+2066>a<U+2069>",
            ),
            (
                "marks",
                "\u{200e}\u{200f}\u{61c}".as_bytes(),
                "<U+200E><U+200F><U+061C>",
            ),
            ("zero-width space", "b\u{200b}ob".as_bytes(), "b<U+200B>ob"),
            (
                "word joiner",
                "b\u{2060}ob\u{feff}".as_bytes(),
                "b<U+2060>ob<U+FEFF>",
            ),
            ("joiner in Latin", "b\u{200d}ob".as_bytes(), "b<U+200D>ob"),
            (
                "joiner in Vietnamese",
                "ấ\u{200d}ạ".as_bytes(),
                "ấ<U+200D>ạ",
            ),
            (
                "two joiners",
                "👩\u{200d}\u{200d}👧".as_bytes(),
                "👩<U+200D><U+200D>👧",
            ),
            ("joiner at the end", "👩\u{200d}".as_bytes(), "👩<U+200D>"),
            (
                "selector after a letter",
                "b\u{fe0f}ob".as_bytes(),
                "b<U+FE0F>ob",
            ),
            (
                "two selectors",
                "❤\u{fe0f}\u{fe0f}".as_bytes(),
                "❤\u{fe0f}<U+FE0F>",
            ),
            (
                "ideographic selector",
                "b\u{e0100}".as_bytes(),
                "b<U+E0100>",
            ),
            ("soft hyphen", "b\u{ad}ob".as_bytes(), "b<U+00AD>ob"),
            (
                "line separator",
                "a\u{2028}b\u{2029}".as_bytes(),
                "a<U+2028>b<U+2029>",
            ),
            (
                "tags",
                "a\u{e0001}\u{e0041}".as_bytes(),
                "a<U+E0001><U+E0041>",
            ),
            (
                "blank letter",
                "\u{3164}\u{115f}".as_bytes(),
                "<U+3164><U+115F>",
            ),
            (
                "annotation",
                "\u{fff9}a\u{fffb}".as_bytes(),
                "<U+FFF9>a<U+FFFB>",
            ),
            (
                "overlong and cut",
                b"\xc0\xaf\xe1\xba",
                "\u{FFFD}\u{FFFD}\u{FFFD}",
            ),
        ] {
            assert_eq!(visible(bytes), shown, "{what}");
        }
    }

    #[test]
    fn what_people_write_is_unchanged() {
        for text in [
            "",
            "hello, world ~!",
            "Làm quen với Kafka, phần một",
            "La\u{300}m quen vo\u{31b}\u{301}i",
            "你好，世界。葛\u{e0100}",
            "مرحبا نمی\u{200c}خواهم",
            "क\u{94d}\u{200d}ष",
            "😀 👍🏽 🇻🇳 1\u{fe0f}\u{20e3} ❤\u{fe0f}",
            "👩\u{200d}👩\u{200d}👧 ❤\u{fe0f}\u{200d}🔥 🏳\u{fe0f}\u{200d}🌈 👩🏽\u{200d}💻",
            "non\u{a0}breaking\u{3000}space",
        ] {
            assert_eq!(visible(text.as_bytes()), text);
        }
    }

    proptest! {
        #[test]
        fn nothing_that_is_shown_can_act(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(!visible(&bytes).chars().any(char::is_control));
        }

        #[test]
        fn what_has_been_made_visible_stays_as_it_is(
            text in "[\u{0}-\u{9f}\u{ad}a\u{200b}-\u{200f}\u{2028}-\u{202e}👩❤ấ你\u{fe0f}\u{e0100}]{0,30}"
        ) {
            let shown = visible(text.as_bytes()).into_owned();
            prop_assert_eq!(visible(shown.as_bytes()), shown.as_str());
            let hidden = |c: char| is_invisible(c) && !is_selector(c) && c != '\u{200C}' && c != '\u{200D}';
            prop_assert!(!shown.chars().any(hidden));
        }
    }
}
