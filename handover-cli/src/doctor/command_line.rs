//! The command lines of a unit, as far as they are judged: see systemd.service(5).

/// One command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CommandLine {
    /// What stands before the program: `-`, `+`, `@` and so on.
    pub(super) prefix: String,
    /// The program, and its arguments. Specifiers and variables are as they are written.
    pub(super) words: Vec<String>,
}

impl CommandLine {
    /// Reads the commands of one assignment, which a lone `;` separates.
    pub(super) fn read(value: &str) -> Vec<Self> {
        let mut commands = vec![Vec::new()];
        let mut rest = value.trim_start();
        while !rest.is_empty() {
            let (word, after) = word(rest);
            match rest[..rest.len() - after.len()].trim_end() {
                ";" => commands.push(Vec::new()),
                r"\;" => last(&mut commands).push(";".to_owned()),
                _ => last(&mut commands).push(word),
            }
            rest = after.trim_start();
        }
        commands.into_iter().filter(|words| !words.is_empty()).map(Self::of).collect()
    }

    fn of(mut words: Vec<String>) -> Self {
        let first = std::mem::take(&mut words[0]);
        let program = first.trim_start_matches(['-', '+', '@', ':', '!', '|']);
        let prefix = first[..first.len() - program.len()].to_owned();
        words[0] = program.to_owned();
        Self { prefix, words }
    }

    pub(super) fn program(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// The last part of the program's path.
    pub(super) fn name(&self) -> &str {
        self.program().rsplit('/').next().unwrap_or_default()
    }

    /// What it has a shell do, if it is one.
    pub(super) fn script(&self) -> Option<&str> {
        let is_shell = ["sh", "bash", "dash"].contains(&self.name());
        let is_last_option = |word: &String| word.starts_with('-') && word.ends_with('c');
        let mut words = self.words.iter().skip(1).skip_while(|word| !is_last_option(word));
        words.nth(1).filter(|_| is_shell).map(String::as_str)
    }

    /// What an option is given, as `--option VALUE` or `--option=VALUE`.
    pub(super) fn option(&self, option: &str) -> Option<&str> {
        let mut words = self.words.iter();
        words
            .by_ref()
            .find_map(|word| {
                let rest = word.strip_prefix(option)?;
                if rest.is_empty() { Some(None) } else { rest.strip_prefix('=').map(Some) }
            })?
            .or_else(|| words.next().map(String::as_str))
    }
}

fn last(commands: &mut [Vec<String>]) -> &mut Vec<String> {
    commands.last_mut().expect("there is one from the start")
}

/// The first word, without its quotes, and what is after it. A quote that is not closed ends with
/// the line.
fn word(text: &str) -> (String, &str) {
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => word.extend(chars.next().map(|(_, c)| unescaped(c))),
            _ if Some(c) == quote => quote = None,
            '"' | '\'' if quote.is_none() => quote = Some(c),
            _ if quote.is_none() && c.is_whitespace() => return (word, &text[at..]),
            _ => word.push(c),
        }
    }
    (word, "")
}

fn unescaped(c: char) -> char {
    match c {
        'n' => '\n',
        't' => '\t',
        's' => ' ',
        c => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_told_apart() {
        for (text, words) in [
            ("/bin/a b  c", &["/bin/a", "b", "c"][..]),
            ("\"/my app\" 'b c' \"d\\\"e\"", &["/my app", "b c", "d\"e"]),
            ("/a x\"y z\"", &["/a", "xy z"]),
            ("/a \"open", &["/a", "open"]),
            ("/a \\; \";\" b;c", &["/a", ";", ";", "b;c"]),
            ("/a \\", &["/a", ""]),
        ] {
            let read = CommandLine::read(text);
            assert_eq!(read.len(), 1, "{text}");
            assert_eq!(read[0].words, words, "{text}");
        }
    }

    #[test]
    fn commands_are_told_apart() {
        let read = CommandLine::read("-/a b ; +@/c ; ");
        assert_eq!(read.len(), 2);
        assert_eq!((&*read[0].prefix, read[0].program()), ("-", "/a"));
        assert_eq!((&*read[1].prefix, read[1].name()), ("+@", "c"));
        assert_eq!(CommandLine::read(" ; "), []);
    }

    #[test]
    fn what_a_shell_is_to_do_is_known() {
        let of = |text: &str| CommandLine::read(text)[0].script().map(str::to_owned);
        assert_eq!(of("/bin/sh -c '/a b'"), Some("/a b".to_owned()));
        assert_eq!(of("/bin/bash -e -uc 'exec /a' x"), Some("exec /a".to_owned()));
        assert_eq!(of("/bin/sh /srv/start"), None);
        assert_eq!(of("/srv/app -c /etc/app.toml"), None);
    }

    #[test]
    fn options_are_found_either_way() {
        let of = |text: &str| CommandLine::read(text)[0].option("--socket").map(str::to_owned);
        assert_eq!(of("/h upgrade --socket /a"), Some("/a".to_owned()));
        assert_eq!(of("/h upgrade --socket=/a --json"), Some("/a".to_owned()));
        assert_eq!(of("/h upgrade --sockets /a"), None);
        assert_eq!(of("/h upgrade --socket"), None);
    }
}
