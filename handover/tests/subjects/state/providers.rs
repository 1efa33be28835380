//! Writing states, and reading them.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use handover::{State, StateError, StateWriter};

use crate::settings::{How, Wanted};

const PAGE_BYTES: usize = 4096;

/// How far apart the pages are that a successor looks at: looking at all would map them all.
const SAMPLE_PAGES: usize = 16 * 1024;

/// What this process is told by its control connections.
#[derive(Debug, Default)]
pub(crate) struct Knobs {
    values: Mutex<BTreeMap<String, String>>,
    changed: Condvar,
}

impl Knobs {
    pub(crate) fn set(&self, name: &str, value: &str) {
        self.values.lock().expect("no panic").insert(name.to_owned(), value.to_owned());
    }

    pub(crate) fn clear(&self, name: &str) {
        self.values.lock().expect("no panic").remove(name);
        self.changed.notify_all();
    }

    fn value(&self, name: &str) -> String {
        self.values.lock().expect("no panic").get(name).cloned().unwrap_or_default()
    }

    pub(crate) fn is_set(&self, name: &str) -> bool {
        self.values.lock().expect("no panic").contains_key(name)
    }

    /// Blocks while the knob is set.
    pub(crate) fn wait_cleared(&self, name: &str) {
        let values = self.values.lock().expect("no panic");
        let _cleared = self.changed.wait_while(values, |values| values.contains_key(name));
    }
}

/// Makes what writes a state. The knob with the state's name has it go wrong.
pub(crate) fn provide(
    when: &'static str,
    wanted: &Wanted,
    generation: u64,
    knobs: &Arc<Knobs>,
) -> impl FnMut(&mut StateWriter) -> Result<(), StateError> + Send + 'static {
    let (name, how, knobs) = (wanted.name.clone(), wanted.how, Arc::clone(knobs));
    move |out| {
        println!("writing {when} {name}");
        match &*knobs.value(&name) {
            "error" => return Err("the disk is on fire".into()),
            "panic" => panic!("a bug of the application"),
            "wait" => knobs.wait_cleared(&name),
            "keep" => std::mem::forget(out.in_place(8)?),
            "idle" => println!("idle {}", out.wait_idle(Duration::from_secs(60))),
            "busy" => println!("idle {}", out.wait_idle(Duration::from_millis(20))),
            "a-while" => println!("idle {}", out.wait_idle(Duration::from_secs(3))),
            "for-ever" => println!("idle {}", out.wait_idle(Duration::MAX)),
            _ => {}
        }
        write(out, how, &format!("{name} of generation {generation}"))
    }
}

fn write(out: &mut StateWriter, how: How, text: &str) -> Result<(), StateError> {
    match how {
        How::Write => out.write_all(text.as_bytes())?,
        How::Place => out.in_place(text.len() as u64)?.copy_from_slice(text.as_bytes()),
        How::Mixed => {
            let (first, rest) = text.as_bytes().split_at(3);
            let (second, third) = rest.split_at(4);
            out.write_all(first)?;
            let mut place = out.in_place(second.len() as u64)?;
            // Two at once, and writing while they live.
            let mut next = out.in_place(1)?;
            out.write_all(&third[1..])?;
            next[0] = third[0];
            place.copy_from_slice(second);
        }
        How::Json => out.json(&BTreeMap::from([("text", text)]))?,
        How::Empty => {}
        How::Large(bytes) => {
            let mut place = out.in_place(bytes)?;
            for (number, page) in place.chunks_exact_mut(PAGE_BYTES).enumerate() {
                page[..8].copy_from_slice(&(number as u64).to_ne_bytes());
            }
        }
        How::Long(bytes) => {
            for number in 0..bytes.div_ceil(PAGE_BYTES as u64) {
                let mut page = [0; PAGE_BYTES];
                page[..8].copy_from_slice(&number.to_ne_bytes());
                out.write_all(&page)?;
            }
        }
    }
    Ok(())
}

/// Shows a state in one line.
pub(crate) fn show(state: &State, how: How) -> String {
    let content = match how {
        How::Json => {
            let read: BTreeMap<String, String> = state.json().expect("JSON");
            read["text"].clone()
        }
        How::Large(_) | How::Long(_) => {
            let number = |page: &[u8]| u64::from_ne_bytes(page[..8].try_into().expect("8 bytes"));
            let pages = state.chunks_exact(PAGE_BYTES).enumerate().step_by(SAMPLE_PAGES);
            let wrong = pages.filter(|(index, page)| number(page) != *index as u64).count();
            format!("{} bytes, {wrong} wrong", state.len())
        }
        _ => String::from_utf8_lossy(state).into_owned(),
    };
    format!("{} {} \"{content}\"", state.name(), state.version())
}
