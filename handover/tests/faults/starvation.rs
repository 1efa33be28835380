//! A side that is short of something, at each amount around the least that will do.
//!
//! The service is on probation, since at the edge it may start and end just after: then its
//! predecessor takes back over.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use handover_testkit::{Folder, Launch, Pid, Resource, example, is_root, recheck, skip, soon};
use rustix::process::{getrlimit, prlimit};

use crate::cell::{IN_FLIGHT_MAX, Serves, assert_losses, own_address, server};
use crate::common::Stage;

/// How many services run at once.
const AT_ONCE: usize = 8;

#[test]
fn successor_with_few_descriptors_serves_or_leaves_all_as_it_was() {
    let came = sweep("RLIMIT_NOFILE of the successor", 3..=24, |limit| {
        let stage = stage(|launch, _| launch);
        let limited = limited(&stage.folder, &format!("ulimit -S -n {limit}"));
        upgrade(stage, &limited, |_| {}, |server| raise(server, Resource::Nofile))
    });
    assert_edge(&came);
}

#[test]
fn successor_with_little_memory_serves_or_leaves_all_as_it_was() {
    let cell = |limit: u64| {
        let stage = stage(|launch, _| launch);
        let limited = limited(&stage.folder, &format!("ulimit -S -v {limit}"));
        upgrade(stage, &limited, |_| {}, |server| raise(server, Resource::As))
    };
    // Where the edge is depends on how everything was built.
    const STEP: u64 = 4096;
    let coarse = sweep("RLIMIT_AS of the successor, in KiB", (1..=16).map(|n| n * STEP), cell);
    assert_edge(&coarse);
    let least = coarse.iter().find(|(_, serves)| **serves == Serves::Successor);
    let least = *least.expect("the largest amount is enough").0;
    let around = (least - STEP..=least + STEP).step_by(256);
    sweep("RLIMIT_AS of the successor, in KiB, around the least", around, cell);
}

#[test]
fn service_without_free_pids_is_upgraded_or_left_as_it_was() {
    if !is_root() {
        skip!(
            "service_without_free_pids_is_upgraded_or_left_as_it_was",
            "only root may change the user"
        );
    }
    let came = sweep("pids that are free at the upgrade", 0..=20, |free| {
        // The limit counts all that a user runs, so it is a user that runs nothing else.
        let user = 1_000_000 + u32::from(own_address().port()) + std::process::id();
        let stage = stage(|launch, folder| {
            std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
            launch.user(user, user)
        });
        let set = |server: Pid, most: u64| {
            // It takes the user of the process, or more than root has in some containers.
            let limit = ["--pid", &server.to_string(), &format!("--nproc={most}:")];
            let command = Launch::of("prlimit").args(limit).user(user, user);
            assert!(command.start().finish(soon()).unwrap().status.success());
        };
        let starve = |server: Pid| {
            let tasks = std::fs::read_dir(format!("/proc/{server}/task")).unwrap().count() as u64;
            set(server, tasks + free);
        };
        upgrade(stage, &example("subject"), starve, |server| set(server, 1000))
    });
    assert_edge(&came);
}

#[test]
fn full_disk_leaves_the_pid_file_and_the_one_that_it_names() {
    if !is_root() {
        skip!("full_disk_leaves_the_pid_file_and_the_one_that_it_names", "only root may mount");
    }
    for options in [NO_BLOCKS, NO_INODES] {
        let disk = |launch: Launch, folder: &Folder| {
            let path = folder.join("mounted/pid");
            on_a_small_disk(launch, folder, options).arg("--pid-file").arg(path)
        };
        let stage = stage(disk);
        let predecessor = stage.server();
        let names = |server: Pid| {
            let path = disk_of(&stage, server).join("pid");
            let right =
                || (std::fs::read_to_string(&path).ok()? == format!("{server}\n")).then_some(());
            assert!(recheck(soon(), right).is_some(), "{path:?} names another one than {server}");
        };
        names(predecessor);
        fill(&disk_of(&stage, predecessor));

        let verdict = stage.ask_of(predecessor).verdict();

        assert!(verdict.contains("cannot write the PID file"), "{verdict}");
        assert_eq!(server(&stage, Serves::Predecessor), Some(predecessor));
        names(predecessor);
        clear(&disk_of(&stage, predecessor));
        let asked = stage.ask_of(predecessor);
        assert!(asked.verdict().contains(" serves after "));
        names(asked.serving());
        stage.load.stop().assert_nothing_lost();
    }
}

#[test]
fn full_disk_keeps_a_successor_from_its_control_socket_and_costs_nothing() {
    const NAME: &str = "full_disk_keeps_a_successor_from_its_control_socket_and_costs_nothing";
    if !is_root() {
        skip!(NAME, "only root may mount");
    }
    let stage = stage(|launch, folder| on_a_small_disk(launch, folder, NO_INODES));
    let predecessor = stage.server();
    fill(&disk_of(&stage, predecessor));
    // The first release that wants one.
    let (subject, control) = (example("subject"), stage.folder.join("mounted/control"));
    let script =
        format!("#!/bin/sh\nexec {} \"$@\" --control {}\n", subject.display(), control.display());
    let wants = stage.folder.write_executable("wants", script);
    let relieve = |server: Pid| clear(&disk_of_folder(&stage.folder, server));

    stage.folder.link("current", &wants);
    let verdict = stage.ask_of(predecessor).verdict();

    assert!(verdict.contains("No space left on device"), "{verdict}");
    assert_eq!(server(&stage, Serves::Predecessor), Some(predecessor));
    relieve(predecessor);
    let asked = stage.ask_of(predecessor);
    assert!(asked.verdict().contains(" serves after "));
    let control = disk_of_folder(&stage.folder, asked.serving()).join("control");
    assert!(control.exists());
    stage.load.stop().assert_nothing_lost();
}

/// What came of a starved upgrade.
struct Came {
    serves: Serves,
    lost: usize,
    verdict: String,
}

/// Runs a cell for each amount, and returns who serves.
fn sweep<A: Copy + Ord + Debug + Send>(
    what: &str,
    amounts: impl Iterator<Item = A> + Send,
    cell: impl Fn(A) -> Came + Sync,
) -> BTreeMap<A, Serves> {
    let (came, failed) = (Mutex::new(BTreeMap::new()), Mutex::new(Vec::new()));
    let amounts = Mutex::new(amounts);
    let next = || amounts.lock().unwrap().next();
    let work = || {
        while let Some(amount) = next() {
            match catch_unwind(AssertUnwindSafe(|| cell(amount))) {
                Ok(ended) => drop(came.lock().unwrap().insert(amount, ended)),
                Err(panic) => {
                    let why = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                    failed.lock().unwrap().push(format!("{amount:?}: {why}"));
                }
            }
        }
    };
    thread::scope(|scope| (0..AT_ONCE).for_each(|_| drop(scope.spawn(work))));
    let (came, failed) = (came.into_inner().unwrap(), failed.into_inner().unwrap());
    println!("{what}: {} cells", came.len());
    for (amount, Came { serves, lost, verdict }) in &came {
        println!("{amount:>4?} {serves:?}, {lost} lost, {verdict}");
    }
    assert!(failed.is_empty(), "{} cells failed:\n{}", failed.len(), failed.join("\n"));
    came.into_iter().map(|(amount, came)| (amount, came.serves)).collect()
}

/// Asserts that the least that will do is among the amounts.
fn assert_edge<A>(came: &BTreeMap<A, Serves>) {
    for serves in [Serves::Predecessor, Serves::Successor] {
        assert!(came.values().any(|it| *it == serves), "{serves:?} is not reached");
    }
}

/// Upgrades a starved service to that executable, and then cleanly, when it has enough again.
fn upgrade(
    stage: Stage,
    executable: &Path,
    starve: impl FnOnce(Pid),
    relieve: impl FnOnce(Pid),
) -> Came {
    let predecessor = stage.server();
    stage.folder.link("current", executable);
    starve(predecessor);

    let verdict = stage.ask_of(predecessor).verdict();

    let succeeded = verdict.contains(" serves after ");
    let serves = if succeeded { Serves::Successor } else { Serves::Predecessor };
    let Some(serving) = server(&stage, serves) else {
        let lines = stage.service.lines();
        let printed: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
        panic!("nobody serves: {}", printed.join("\n"));
    };
    assert_eq!(serving == predecessor, serves == Serves::Predecessor, "{verdict}");
    relieve(serving);
    stage.folder.link("current", example("subject"));
    let asked = stage.ask_of(serving);
    let clean = asked.verdict();
    assert!(clean.contains(" serves after "), "after {verdict}, the next upgrade: {clean}");
    let next = asked.serving();
    stage.load.wait_answered_by(|pid| pid == next, soon()).unwrap();
    let outcome = stage.load.stop();
    // By a successor that served and came to its end.
    let accepted = if verdict.contains("rolled back") { IN_FLIGHT_MAX } else { 0 };
    assert_losses(&outcome, accepted);
    Came { serves, lost: outcome.lost.len(), verdict }
}

/// A loaded service that needs no thread for a request, on probation.
fn stage(change: impl FnOnce(Launch, &Folder) -> Launch) -> Stage {
    let address = own_address().to_string();
    let arguments = ["--listen", &address, "--inline", "--probation", "300"];
    Stage::with(&arguments, change)
}

/// A release that starts with less.
fn limited(folder: &Folder, how: &str) -> PathBuf {
    let subject = example("subject");
    let script = format!("#!/bin/sh\n{how}\nexec {} \"$@\"\n", subject.display());
    folder.write_executable("limited", script)
}

/// Gives a process as much as this one has.
fn raise(pid: Pid, resource: Resource) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap());
    prlimit(pid, resource, getrlimit(resource)).unwrap();
}

/// Mounts where the fourth block, or the eighth inode, is the last.
const NO_BLOCKS: &str = "size=16k";
const NO_INODES: &str = "nr_inodes=8";

/// Starts the service with a small file system of its own at `mounted`, in a mount namespace of its
/// own.
fn on_a_small_disk(launch: Launch, folder: &Folder, options: &str) -> Launch {
    std::fs::create_dir(folder.join("mounted")).unwrap();
    let text = format!(
        "#!/bin/sh\nexec unshare -m sh -c 'cd {0} && mount -t tmpfs -o {options} none mounted && \
         ln -sfn {1} current && exec {0}/current \"$@\"' sh \"$@\"\n",
        folder.path().display(),
        example("subject").display()
    );
    let wrapper = folder.write_executable("wrapper", text);
    folder.link("current", wrapper);
    launch
}

/// The small file system, as that process sees it.
fn disk_of(stage: &Stage, pid: Pid) -> PathBuf {
    disk_of_folder(&stage.folder, pid)
}

fn disk_of_folder(folder: &Folder, pid: Pid) -> PathBuf {
    let inside = folder.join("mounted");
    PathBuf::from(format!("/proc/{pid}/root")).join(inside.strip_prefix("/").unwrap())
}

/// Takes all the blocks or inodes that are left.
fn fill(disk: &Path) {
    const BLOCK: [u8; 4096] = [0; 4096];
    let mut number = 0;
    while std::fs::write(disk.join(format!("filler-{number}")), BLOCK).is_ok() {
        number += 1;
    }
    assert!(number > 0, "{disk:?} is writable");
}

fn clear(disk: &Path) {
    let files = std::fs::read_dir(disk).unwrap().map(|file| file.unwrap());
    let fillers = files.filter(|file| file.file_name().as_encoded_bytes().starts_with(b"filler"));
    fillers.for_each(|file| std::fs::remove_file(file.path()).unwrap());
}
