//! Unit files as [systemd.syntax(7)](https://man7.org/linux/man-pages/man7/systemd.syntax.7.html)
//! has them.

use std::rc::Rc;

/// Where something is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) file: Rc<str>,
    /// From 1; of several that belong together, the first.
    pub(super) line: usize,
}

/// `Name=value` in a section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Assignment {
    pub(super) section: Rc<str>,
    pub(super) name: String,
    /// Without the space around; empty if everything before is to be forgotten.
    pub(super) value: String,
    pub(super) place: Place,
}

/// A line that systemd ignores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ignored {
    pub(super) text: String,
    pub(super) why: &'static str,
    pub(super) place: Place,
}

/// What is in one file, or in several that are read one after the other.
#[derive(Debug, Default)]
pub(super) struct UnitFile {
    pub(super) sections: Vec<Rc<str>>,
    pub(super) assignments: Vec<Assignment>,
    pub(super) ignored: Vec<Ignored>,
}

impl UnitFile {
    /// Reads a file on top of what was read before it.
    pub(super) fn read(&mut self, file: &str, text: &str) {
        let mut reader = Reader { unit: self, file: file.into(), section: None };
        reader.read(text.strip_prefix('\u{feff}').unwrap_or(text));
    }
}

struct Reader<'a> {
    unit: &'a mut UnitFile,
    file: Rc<str>,
    section: Option<Rc<str>>,
}

impl Reader<'_> {
    fn read(&mut self, text: &str) {
        // What was joined so far, and the line that it began at.
        let mut begun: Option<(String, usize)> = None;
        for (index, line) in text.split('\n').enumerate() {
            // A comment may stand between the lines that belong together.
            if line.trim_start().starts_with(['#', ';']) {
                continue;
            }
            let line = line.strip_suffix('\r').unwrap_or(line);
            let (mut whole, number) = begun.take().unwrap_or((String::new(), index + 1));
            match continued(line) {
                Some(beginning) => {
                    whole.push_str(beginning);
                    whole.push(' ');
                    begun = Some((whole, number));
                }
                None => {
                    whole.push_str(line);
                    self.line(whole.trim(), number);
                }
            }
        }
        if let Some((whole, number)) = begun {
            self.line(whole.trim(), number);
        }
    }

    fn line(&mut self, line: &str, number: usize) {
        let place = Place { file: Rc::clone(&self.file), line: number };
        if line.is_empty() {
            return;
        }
        if let Some(header) = line.strip_prefix('[') {
            match header.strip_suffix(']') {
                Some(name) => self.begin(name),
                None => self.ignore(line, "a section begins with `[NAME]`", place),
            }
            return;
        }
        let Some(section) = &self.section else {
            return self.ignore(line, "it is in no section", place);
        };
        let Some((name, value)) = line.split_once('=') else {
            return self.ignore(line, "it is neither a section nor an assignment", place);
        };
        self.unit.assignments.push(Assignment {
            section: Rc::clone(section),
            name: name.trim_end().to_owned(),
            value: value.trim_start().to_owned(),
            place,
        });
    }

    fn begin(&mut self, name: &str) {
        let known = self.unit.sections.iter().find(|section| &***section == name).cloned();
        let section = known.unwrap_or_else(|| {
            let section: Rc<str> = name.into();
            self.unit.sections.push(Rc::clone(&section));
            section
        });
        self.section = Some(section);
    }

    fn ignore(&mut self, line: &str, why: &'static str, place: Place) {
        self.unit.ignored.push(Ignored { text: line.to_owned(), why, place });
    }
}

/// The line without its last backslash, if that is one that joins it to the next line: one that is
/// not itself escaped.
fn continued(line: &str) -> Option<&str> {
    let backslashes = line.len() - line.trim_end_matches('\\').len();
    if backslashes % 2 == 1 { line.strip_suffix('\\') } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> UnitFile {
        let mut unit = UnitFile::default();
        unit.read("x.service", text);
        unit
    }

    fn values(unit: &UnitFile) -> Vec<(&str, &str, &str, usize)> {
        let of = |a| -> (&str, &str, &str, usize) {
            let a: &Assignment = a;
            (&a.section, &a.name, &a.value, a.place.line)
        };
        unit.assignments.iter().map(of).collect()
    }

    #[test]
    fn assignments_keep_their_section_and_line() {
        let unit =
            read("# c\n[Unit]\nDescription = a = b \n\n[Service]\r\nType=notify\r\nExecStart=\n");
        assert_eq!(
            values(&unit),
            [
                ("Unit", "Description", "a = b", 3),
                ("Service", "Type", "notify", 6),
                ("Service", "ExecStart", "", 7),
            ]
        );
        assert_eq!(unit.ignored, []);
    }

    #[test]
    fn lines_are_joined_over_comments() {
        let unit =
            read("[Service]\nExecStart=/a \\\n# not this\\\n  ; nor this\n  b \\\n c\nType=x\n");
        assert_eq!(
            values(&unit),
            [("Service", "ExecStart", "/a    b   c", 2), ("Service", "Type", "x", 7)]
        );
        let unit = read("[Service]\nA=b\\\\\nC=d\\");
        assert_eq!(values(&unit), [("Service", "A", "b\\\\", 2), ("Service", "C", "d", 3)]);
    }

    #[test]
    fn what_systemd_ignores_is_noted() {
        let unit = read("Type=notify\n[Service\nx\n[Service]\ny\n=z\n");
        let lines: Vec<_> = unit.ignored.iter().map(|ignored| ignored.place.line).collect();
        assert_eq!(lines, [1, 2, 3, 5]);
    }

    #[test]
    fn files_are_read_one_on_top_of_the_other() {
        let mut unit = UnitFile::default();
        unit.read("a", "\u{feff}[Service]\nType=simple");
        unit.read("b", "Type=lost\n[Service]\nType=notify");
        assert_eq!(values(&unit).len(), 2);
        assert_eq!(&*unit.assignments[1].place.file, "b");
        assert_eq!(unit.ignored.len(), 1, "a section ends with its file");
        assert_eq!(unit.sections.len(), 1);
    }

    #[test]
    fn garbage_is_read_without_a_panic() {
        let seed = "[Service]\nType=notify \\\n# c\n x=\"\u{e4}\\\"\n[Socket]\nListenStream=80\r\n";
        let mut state = 1_u64;
        let mut random = move |below: usize| {
            // The constants of Knuth's MMIX.
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).unwrap() % below
        };
        for _ in 0..20_000 {
            let mut bytes = seed.as_bytes().to_vec();
            for _ in 0..1 + random(6) {
                let at = random(bytes.len());
                match random(3) {
                    0 => bytes[at] = b"[]=\\\n\r#; \0\xff"[random(11)],
                    1 => drop(bytes.remove(at)),
                    _ => bytes.insert(at, b"\\\n=[]\xc3"[random(6)]),
                }
            }
            let unit = read(&String::from_utf8_lossy(&bytes));
            for assignment in &unit.assignments {
                assert!(assignment.place.line >= 1 && !assignment.value.contains('\n'));
            }
        }
    }
}
