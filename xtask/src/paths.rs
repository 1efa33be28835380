//! Which paths a source file mentions, as far as that can be told without compiling it.
//!
//! Comments, strings and characters are left out, `use` trees are unfolded, and `self` and `super`
//! are resolved, so `use std::{io, net::TcpStream}` mentions `std::io` and `std::net::TcpStream`.
//! Names that a `use` has renamed are not followed: the `use` itself is a mention.

/// A path, or a lone name, on a line of a source file.
#[derive(Debug, PartialEq)]
pub(crate) struct Mention {
    pub(crate) line: usize,
    pub(crate) path: Vec<String>,
}

/// Finds all mentions in a file.
///
/// `module` is where the file stands, such as `["crate", "sys", "fd"]`. A `use` of a whole crate
/// counts as a mention of something in it: `use libc;` yields `libc::self`.
pub(crate) fn mentions(source: &str, module: &[String]) -> Vec<Mention> {
    let mut reader = Reader {
        tokens: &tokens(source),
        next: 0,
        modules: vec![(0, module.to_vec())],
        depth: 0,
        found: Vec::new(),
    };
    reader.read();
    reader.found
}

struct Reader<'t> {
    tokens: &'t [(usize, Token)],
    next: usize,
    /// The modules around the next token, each with the depth of braces that its body has.
    modules: Vec<(usize, Vec<String>)>,
    depth: usize,
    found: Vec<Mention>,
}

impl Reader<'_> {
    fn read(&mut self) {
        while let Some(token) = self.peek(0) {
            match token {
                Token::Sign('{') => self.depth += 1,
                Token::Sign('}') => self.close(),
                Token::Name(name) => {
                    if name == "mod" && self.opens_module() {
                        self.open_module();
                    } else if name == "use" && self.peek(1) != Some(&Token::Sign('<')) {
                        self.next += 1;
                        self.use_tree(&[]);
                    } else {
                        self.path();
                    }
                    continue;
                }
                Token::Separator | Token::Sign(_) => {}
            }
            self.next += 1;
        }
    }

    fn peek(&self, ahead: usize) -> Option<&Token> {
        self.tokens.get(self.next + ahead).map(|(_, token)| token)
    }

    fn opens_module(&self) -> bool {
        matches!(self.peek(1), Some(Token::Name(_))) && self.peek(2) == Some(&Token::Sign('{'))
    }

    fn open_module(&mut self) {
        let mut module = self.module().to_vec();
        if let Some(Token::Name(name)) = self.peek(1) {
            module.push(name.clone());
        }
        self.depth += 1;
        self.modules.push((self.depth, module));
        self.next += 3;
    }

    fn close(&mut self) {
        if self.modules.len() > 1 && self.modules.last().is_some_and(|(at, _)| *at == self.depth) {
            self.modules.pop();
        }
        self.depth = self.depth.saturating_sub(1);
    }

    fn module(&self) -> &[String] {
        self.modules.last().map_or(&[], |(_, module)| module)
    }

    /// Reads `a::b::c`, up to a generic argument or a macro's mark.
    fn path(&mut self) {
        let start = self.next;
        let mut path = Vec::new();
        while let Some(Token::Name(name)) = self.peek(0) {
            path.push(name.clone());
            self.next += 1;
            let goes_on = matches!(self.peek(1), Some(Token::Name(_)));
            if self.peek(0) != Some(&Token::Separator) || !goes_on {
                break;
            }
            self.next += 1;
        }
        self.mention(start, path);
    }

    /// Reads one tree of a `use` and mentions each of its leaves.
    fn use_tree(&mut self, prefix: &[String]) {
        let start = self.next;
        let mut path = prefix.to_vec();
        while let Some(token) = self.peek(0) {
            match token {
                Token::Separator => self.next += 1,
                Token::Sign('{') => return self.use_group(&path),
                Token::Sign('*') => {
                    self.next += 1;
                    path.push("*".to_owned());
                    break;
                }
                Token::Name(name) => {
                    path.push(name.clone());
                    self.next += 1;
                    if self.peek(0) != Some(&Token::Separator) {
                        break;
                    }
                }
                Token::Sign(_) => break,
            }
        }
        if path.len() == 1 {
            path.push("self".to_owned());
        }
        self.mention(start, path);
        if self.peek(0) == Some(&Token::Name("as".to_owned())) {
            self.next += 2;
        }
    }

    fn use_group(&mut self, prefix: &[String]) {
        self.next += 1;
        while let Some(token) = self.peek(0) {
            match token {
                Token::Sign('}') => {
                    self.next += 1;
                    return;
                }
                Token::Sign(',') => self.next += 1,
                Token::Name(_) | Token::Separator | Token::Sign('{' | '*') => self.use_tree(prefix),
                // Not a `use` after all, but the pattern of a macro.
                Token::Sign(_) => return,
            }
        }
    }

    fn mention(&mut self, token: usize, path: Vec<String>) {
        let line = self.tokens.get(token).map_or(0, |(line, _)| *line);
        let path = self.resolve(path);
        self.found.push(Mention { line, path });
    }

    /// Replaces a leading `self` or `super` of a path by what it stands for.
    fn resolve(&self, path: Vec<String>) -> Vec<String> {
        // Alone they are a value, or a visibility.
        if path.len() < 2 {
            return path;
        }
        let supers = path.iter().skip_while(|name| *name == "self");
        let supers = supers.take_while(|name| *name == "super").count();
        let leading = path.iter().take_while(|name| *name == "self" || *name == "super").count();
        if leading == 0 {
            return path;
        }
        let module = self.module();
        let kept = module.len().saturating_sub(supers).max(1).min(module.len());
        module[..kept].iter().chain(&path[leading..]).cloned().collect()
    }
}

#[derive(Debug, PartialEq)]
enum Token {
    Name(String),
    /// `::`
    Separator,
    /// Any other character that is not space.
    Sign(char),
}

/// Cuts a source into tokens with their lines, without comments and literals.
fn tokens(source: &str) -> Vec<(usize, Token)> {
    let mut lexer = Lexer { rest: source, line: 1, tokens: Vec::new() };
    while lexer.step() {}
    lexer.tokens
}

struct Lexer<'s> {
    rest: &'s str,
    line: usize,
    tokens: Vec<(usize, Token)>,
}

impl Lexer<'_> {
    fn step(&mut self) -> bool {
        let Some(first) = self.rest.chars().next() else { return false };
        if self.rest.starts_with("//") {
            self.skip(self.rest.find('\n').unwrap_or(self.rest.len()));
        } else if self.rest.starts_with("/*") {
            self.skip(comment_length(self.rest));
        } else if let Some(length) = literal_length(self.rest) {
            self.skip(length);
        } else if self.rest.starts_with("::") {
            self.emit(Token::Separator, 2);
        } else if in_name(first) {
            self.name(first);
        } else {
            if !first.is_whitespace() {
                self.tokens.push((self.line, Token::Sign(first)));
            }
            self.skip(first.len_utf8());
        }
        true
    }

    fn name(&mut self, first: char) {
        // A raw name, such as `r#type`, is the name without its mark.
        let raw = self.rest.strip_prefix("r#").is_some_and(|rest| rest.starts_with(in_name));
        if raw {
            self.skip(2);
        }
        let length = self.rest.find(|c| !in_name(c)).unwrap_or(self.rest.len());
        if first.is_ascii_digit() {
            self.skip(length);
        } else {
            self.emit(Token::Name(self.rest[..length].to_owned()), length);
        }
    }

    fn emit(&mut self, token: Token, length: usize) {
        self.tokens.push((self.line, token));
        self.skip(length);
    }

    fn skip(&mut self, length: usize) {
        let (skipped, rest) = self.rest.split_at(length);
        self.line += skipped.matches('\n').count();
        self.rest = rest;
    }
}

fn in_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The length of the block comment at the start; they nest.
fn comment_length(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// The length of the string, character or lifetime at the start, if there is one.
fn literal_length(text: &str) -> Option<usize> {
    let prefix = text.find(|c| !in_name(c))?;
    let (kind, rest) = text.split_at(prefix);
    let hashes = rest.len() - rest.trim_start_matches('#').len();
    match (kind, rest.chars().next()?) {
        ("" | "b" | "c", '"') => Some(prefix + quoted_length(rest, '"')),
        ("r" | "br" | "cr", '"' | '#') if rest[hashes..].starts_with('"') => {
            let end = format!("\"{}", "#".repeat(hashes));
            let body = prefix + hashes + 1;
            Some(text[body..].find(&end).map_or(text.len(), |at| body + at + end.len()))
        }
        ("" | "b", '\'') => Some(prefix + character_length(rest)),
        _ => None,
    }
}

fn quoted_length(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

/// Tells `'x'` from the lifetime `'x`.
fn character_length(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    let (first, second) = (chars.next(), chars.next());
    match (first, second) {
        (Some((_, '\\')), _) | (Some(_), Some((_, '\''))) => quoted_length(text, '\''),
        _ => text[1..].find(|c| !in_name(c)).map_or(text.len(), |at| at + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(source: &str) -> Vec<String> {
        paths_in(source, "crate::outer")
    }

    fn paths_in(source: &str, module: &str) -> Vec<String> {
        let module: Vec<String> = module.split("::").map(str::to_owned).collect();
        mentions(source, &module).into_iter().map(|mention| mention.path.join("::")).collect()
    }

    #[test]
    fn comments_and_literals_are_no_mentions() {
        let source = r##"
            // libc::a
            /// libc::b
            /* libc::c /* libc::d */ libc::e */
            "libc::f \" libc::g" b"libc::h" r#"libc::i " libc::j"# 'l' '\'' b'l' c"libc::k"
            libc::z
        "##;
        assert_eq!(paths(source), ["libc::z"]);
    }

    #[test]
    fn lifetimes_do_not_begin_a_character() {
        assert_eq!(paths("&'a libc::x, &'static libc::y, 'z'"), ["libc::x", "libc::y"]);
    }

    #[test]
    fn use_trees_are_unfolded() {
        let source = "use std::{io, net::{self, TcpStream as S}, os::fd::*}; use libc; libc::x";
        let expected = [
            "std::io",
            "std::net::self",
            "std::net::TcpStream",
            "std::os::fd::*",
            "libc::self",
            "libc::x",
        ];
        assert_eq!(paths(source), expected);
    }

    #[test]
    fn self_and_super_are_resolved() {
        assert_eq!(paths("use super::x; self::y::z"), ["crate::x", "crate::outer::y::z"]);
        let nested = "mod tests { use super::*; fn f() { if a { super::b } } } super::c";
        let expected = ["crate::outer::*", "fn", "f", "if", "a", "crate::outer::b", "crate::c"];
        assert_eq!(paths(nested), expected);
        assert_eq!(paths_in("super::super::super::x", "crate::a"), ["crate::x"]);
    }

    #[test]
    fn paths_inside_generics_and_macros_are_found() {
        assert_eq!(paths("Vec::<std::net::X>::new()")[..2], ["Vec", "std::net::X"]);
        assert_eq!(paths("$crate::sys::x!(r#type, 0x1f)"), ["crate::sys::x", "type"]);
        assert_eq!(paths("impl A + use<'a, T>"), ["impl", "A", "use", "T"]);
    }

    #[test]
    fn mentions_carry_their_line() {
        let found = mentions("\n\"a\nb\"\n/* c\n */ x", &[]);
        assert_eq!(found, [Mention { line: 5, path: vec!["x".to_owned()] }]);
    }
}
