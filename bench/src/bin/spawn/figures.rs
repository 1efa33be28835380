//! What is measured.

use handover_bench::{Figure, milliseconds};

use crate::memory::Pages;
use crate::servers::Upgraded;
use crate::start::{Sample, Way};

const AXIS: &str = "GiB of heap";

/// Those of both kinds of pages.
pub(crate) struct Figures {
    small: Set,
    huge: Set,
}

struct Set {
    call: Figure,
    first: Figure,
    server: Figure,
    stall: Figure,
}

impl Figures {
    pub(crate) fn new() -> Self {
        Self { small: Set::new(Pages::Small), huge: Set::new(Pages::Huge) }
    }

    /// Those to which samples of this heap belong.
    fn of(&mut self, gib: u64, pages: Pages) -> impl Iterator<Item = &mut Set> {
        let Self { small, huge } = self;
        let (small_too, huge_too) = (pages == Pages::Small, pages == Pages::Huge || gib == 0);
        let both = [small_too.then_some(small), huge_too.then_some(huge)];
        both.into_iter().flatten()
    }

    pub(crate) fn add_small(&mut self, gib: u64, pages: Pages, sample: &Sample) {
        for set in self.of(gib, pages) {
            set.call.add(sample.way.name(), gib as f64, milliseconds(sample.in_call));
            set.first.add(sample.way.name(), gib as f64, milliseconds(sample.to_main));
        }
    }

    pub(crate) fn add_server(
        &mut self,
        gib: u64,
        pages: Pages,
        name: &str,
        upgraded: &Upgraded,
        is_first: bool,
    ) {
        for set in self.of(gib, pages) {
            set.server.add(name, gib as f64, milliseconds(upgraded.to_main));
            set.stall.add(name, gib as f64, milliseconds(upgraded.stalled));
            if is_first {
                set.stall.add("no upgrade", gib as f64, milliseconds(upgraded.stalled_before));
            }
        }
    }

    pub(crate) fn into_vec(self) -> Vec<Figure> {
        let sets = [self.small, self.huge].into_iter();
        sets.flat_map(|Set { call, first, server, stall }| [call, first, server, stall]).collect()
    }
}

impl Set {
    fn new(pages: Pages) -> Self {
        let suffix = match pages {
            Pages::Small => "",
            Pages::Huge => "-huge",
        };
        let figure = |name: &str, title: &str, floor: &str| {
            let title = format!("{title} (heap in {pages})");
            Figure::new(&format!("{name}{suffix}"), &title, "ms").axis(AXIS).floor(floor)
        };
        let least = Way::Clone.name();
        Self {
            call: figure("spawn-call", "Time in the call that starts a process", least),
            first: figure("spawn-first", "Time until a small process is in main", least),
            server: figure(
                "spawn-server",
                "Time until the successor of a server is in main",
                "bare",
            ),
            stall: figure("spawn-stall", "Longest stall of a busy thread of a server", "bare"),
        }
    }
}
