//! What happens to a machine, as text: one thing a line, so that inputs can be read and mixed.
//!
//! | line | what happens |
//! |---|---|
//! | `{...}` | that frame comes, with as many descriptors as it says |
//! | `3 {...}` | it comes with three |
//! | `~ {...}` | the kernel has dropped some of its descriptors |
//! | `+250` | so many milliseconds pass, and the machine is told so |
//! | `<`, `>` | the socket is full, or takes frames again |
//! | `=1,2,30` | how the machine is made, as numbers: on the first line only |
//! | anything else | its first byte is a call, of the application or of the driver |

use std::time::Duration;

/// How many things are done at most: a bound for the time that an input takes.
const MAX_STEPS: usize = 4096;

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// A frame comes.
    Frame {
        /// Its bytes.
        bytes: &'a [u8],
        /// How many descriptors come with it; as many as it says if `None`.
        descriptors: Option<usize>,
        /// Whether the kernel has dropped some.
        truncated: bool,
    },
    /// Time passes.
    Wait(Duration),
    /// The socket is full from here on, or not any more.
    Full(bool),
    /// Something is called.
    Call(u8),
}

/// The numbers of the first line, if it has some, and what happens.
pub fn read(data: &[u8]) -> (Vec<u64>, impl Iterator<Item = Step<'_>>) {
    let mut lines = data.split(|byte| *byte == b'\n').peekable();
    let numbers = match lines.peek() {
        Some([b'=', numbers @ ..]) => numbers.split(|byte| *byte == b',').map(number).collect(),
        _ => Vec::new(),
    };
    let skipped = usize::from(!numbers.is_empty());
    (numbers, lines.skip(skipped).filter_map(step).take(MAX_STEPS))
}

fn step(line: &[u8]) -> Option<Step<'_>> {
    let frame = |bytes, descriptors, truncated| Step::Frame { bytes, descriptors, truncated };
    Some(match line {
        [] => return None,
        [b'{', ..] => frame(line, None, false),
        [b'~', b' ', bytes @ ..] => frame(bytes, None, true),
        [b'0'..=b'9', ..] => {
            let border = line.iter().position(|byte| *byte == b' ').unwrap_or(line.len());
            let (descriptors, bytes) = line.split_at(border);
            let descriptors = usize::try_from(number(descriptors)).unwrap_or(usize::MAX);
            frame(bytes.get(1..).unwrap_or_default(), Some(descriptors), false)
        }
        [b'+', ms @ ..] => Step::Wait(Duration::from_millis(number(ms))),
        [b'<', ..] => Step::Full(true),
        [b'>', ..] => Step::Full(false),
        [call, ..] => Step::Call(*call),
    })
}

/// The number that the bytes are, or begin with; 0 if there is none.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().take_while(|byte| byte.is_ascii_digit()).fold(0, |number: u64, byte| {
        number.saturating_mul(10).saturating_add(u64::from(byte - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_one_thing_that_happens() {
        let (numbers, steps) = read(b"=1,20,\n{}\n3 {x}\n~ {}\n+250\n\n<\n>\nc\n");
        assert_eq!(numbers, [1, 20, 0]);
        let frame = |bytes, descriptors, truncated| Step::Frame { bytes, descriptors, truncated };
        let expected = [
            frame(b"{}", None, false),
            frame(b"{x}", Some(3), false),
            frame(b"{}", None, true),
            Step::Wait(Duration::from_millis(250)),
            Step::Full(true),
            Step::Full(false),
            Step::Call(b'c'),
        ];
        assert_eq!(steps.collect::<Vec<_>>(), expected);
    }
}
