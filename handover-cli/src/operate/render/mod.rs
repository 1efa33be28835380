//! What the service says, for people.
//!
//! All of it is text of other programs: what could steer a terminal is taken out before it is shown.

mod amount;
mod event;
mod status;
mod verdict;

pub(super) use amount::Left;
use amount::{Ago, Took, bytes};
pub(super) use event::{phase, stamped};
pub(super) use status::{Overview, in_one_line};
pub(super) use verdict::verdict;

/// The text without colours and other commands to the terminal, on one line.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in console::strip_ansi_codes(text).chars() {
        match character {
            '\t' => plain.push(' '),
            control if control.is_control() => plain.extend(control.escape_default()),
            other => plain.push(other),
        }
    }
    plain
}

/// `1 listener`, `2 listeners`.
fn count(count: u64, noun: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{s}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_cannot_steer_the_terminal() {
        assert_eq!(plain("\u{1b}[31mred\u{1b}[0m"), "red");
        assert_eq!(plain("a\rb\nc\td"), "a\\rb\\nc d");
        assert!(!plain("\u{1b}]0;title\u{7}x\u{1b}[2J\u{9b}2J").contains(char::is_control));
        assert_eq!(plain("Überlauf 40 %"), "Überlauf 40 %");
    }
}
