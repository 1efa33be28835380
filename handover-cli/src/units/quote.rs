//! Words of a command line in a unit, as
//! [systemd.service(5)](https://man7.org/linux/man-pages/man5/systemd.service.5.html) reads them.

use std::fmt::Write as _;

/// Writes an argument so that the program gets exactly this.
pub(super) fn argument(text: &str) -> String {
    // A lone one separates two commands, unless it is written like this.
    if text == ";" {
        return r"\;".to_owned();
    }
    // A dollar begins a variable, and two of them are one.
    word(&text.replace('$', "$$"))
}

/// Writes an assignment to a variable. There a dollar is a dollar.
pub(super) fn variable(name: &str, value: &str) -> String {
    word(&format!("{name}={value}"))
}

fn word(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=@+,%$[]^~#{}()&|<>*?!".contains(c);
    // At the start of a word it could be taken for a comment by a reader.
    let quoted = text.is_empty() || text.starts_with('#') || !text.chars().all(plain);
    let mut written = String::new();
    for c in text.chars() {
        match c {
            // Begins a specifier, in quotes as well.
            '%' => written.push_str("%%"),
            '"' => written.push_str("\\\""),
            '\\' => written.push_str("\\\\"),
            '\n' => written.push_str("\\n"),
            '\t' => written.push_str("\\t"),
            '\r' => written.push_str("\\r"),
            c if c.is_ascii_control() => {
                write!(written, "\\x{:02x}", c as u32).expect("a string takes it");
            }
            c => written.push(c),
        }
    }
    if quoted { format!("\"{written}\"") } else { written }
}

/// Writes the path of a program, which stands first in a command line.
///
/// # Errors
///
/// If systemd takes no such path there; `what` it is.
pub(super) fn program(what: &str, path: &str) -> Result<String, String> {
    if !path.starts_with('/') {
        let here = std::env::current_dir().ok().map(|here| here.join(path));
        let instead = here.filter(|_| !path.is_empty()).and_then(|path| tidy(&path));
        let instead = instead.map_or_else(String::new, |path| format!("; write {path}"));
        return Err(format!("{what} `{path}` must be an absolute path{instead}"));
    }
    if let Some(c) = path.chars().find(|c| c.is_control() || "\"'\\$".contains(*c)) {
        return Err(format!("{what} {path:?}: systemd starts no program with {c:?} in its path"));
    }
    if path.ends_with('/') || path.split('/').any(|part| part == "..") {
        return Err(format!("{what} {path} must be the path of a file, without `..`"));
    }
    Ok(word(path))
}

/// Leaves out `.` and the like; not `..`, which may lead elsewhere through a link.
fn tidy(path: &std::path::Path) -> Option<String> {
    path.components().collect::<std::path::PathBuf>().to_str().map(str::to_owned)
}

/// Reads `NAME=VALUE`.
///
/// # Errors
///
/// If systemd would not take it: it ignores such an assignment, with a line in the journal.
pub(super) fn assignment(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("must be NAME=VALUE")?;
    let takes = |c: char| c == '_' || c.is_ascii_alphanumeric();
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(takes)
    {
        return Err("the name of a variable has letters, digits and underscores".to_owned());
    }
    if value.chars().any(|c| c.is_control() && !"\n\t".contains(c)) {
        return Err("systemd takes no control characters there".to_owned());
    }
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_arrives_as_it_was_given() {
        for (given, written) in [
            ("--config=/etc/app.toml", "--config=/etc/app.toml"),
            ("", "\"\""),
            ("two words", "\"two words\""),
            (r#"a"b"#, r#""a\"b""#),
            ("it's", "\"it's\""),
            (r"C:\dir\", r#""C:\\dir\\""#),
            ("100%", "100%%"),
            ("$HOME and ${HOME}", "\"$$HOME and $${HOME}\""),
            (";", r"\;"),
            ("a;b", "\"a;b\""),
            ("a\nb\tc\x01", "\"a\\nb\\tc\\x01\""),
            ("#1", "\"#1\""),
            ("größe", "größe"),
        ] {
            assert_eq!(argument(given), written, "{given:?}");
        }
    }

    #[test]
    fn a_variable_may_hold_dollars() {
        assert_eq!(variable("PRICE", "5 $ or 10%"), "\"PRICE=5 $ or 10%%\"");
    }

    #[test]
    fn a_program_is_given_by_a_path_that_systemd_takes() {
        assert_eq!(program("it", "/srv/my app/app").unwrap(), "\"/srv/my app/app\"");
        let error = program("the program", "./target/app").unwrap_err();
        let here = std::env::current_dir().unwrap().join("target/app");
        assert!(error.ends_with(&format!("write {}", here.display())), "{error}");
        for refused in ["", "/srv/$app", "/srv/a\"b", "/srv/a\nb", "/srv/", "/srv/../app"] {
            program("it", refused).unwrap_err();
        }
    }

    #[test]
    fn a_variable_that_systemd_would_ignore_is_refused() {
        assert_eq!(assignment("A=b=c").unwrap(), ("A".to_owned(), "b=c".to_owned()));
        for refused in ["A", "=b", "1A=b", "A-B=c", "A=\u{1b}[0m"] {
            assignment(refused).unwrap_err();
        }
    }
}
