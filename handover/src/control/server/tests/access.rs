//! Who may ask.

use super::*;

#[test]
fn the_socket_is_its_owners_whatever_the_umask() {
    let name = "control::server::tests::access::the_socket_is_its_owners_whatever_the_umask";
    if let Some(path) = env::var_os(ROLE) {
        let path = Path::new(&path);
        let (endpoint, _) = claim(bind_how(path));
        // As it is bound, before anything else is done to it.
        println!("bound {:o}", mode(path));
        permit(&endpoint.local_address().unwrap(), Policy::default()).unwrap();
        println!("permitted {:o}", mode(path));
        return;
    }
    for (umask, bound) in [("0000", "600"), ("0022", "600"), ("0777", "0")] {
        let folder = Folder::create();
        let run = Launch::of("/bin/sh")
            .args(["-c", &format!("umask {umask}; exec \"$0\" \"$@\"")])
            .arg(env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(ROLE, folder.join("control"));
        let finished = run.start().finish(soon()).unwrap();
        let printed = finished.stdout();
        assert!(printed.contains(&format!("bound {bound}\n")), "{umask}: {printed}");
        assert!(printed.contains("permitted 600\n"), "{umask}: {printed}");
    }
}

#[test]
fn a_group_may_connect_if_the_service_names_one() {
    if !is_root() {
        skip!("a_group_may_connect_if_the_service_names_one", "only root has every group");
    }
    let rig = Rig::new();
    let address = rig.endpoint.local_address().unwrap();
    permit(&address, Policy { group: Some(4242) }).unwrap();
    assert_eq!((mode(&rig.path), fs::metadata(&rig.path).unwrap().gid()), (0o660, 4242));
    permit(&address, Policy { group: Some(4243) }).unwrap();
    assert_eq!((mode(&rig.path), fs::metadata(&rig.path).unwrap().gid()), (0o660, 4243));
    permit(&address, Policy::default()).unwrap();
    assert_eq!(mode(&rig.path), 0o600);
}

#[test]
fn what_has_taken_the_place_of_the_socket_keeps_its_mode() {
    let rig = Rig::new();
    let other = rig.folder.write("other", "");
    fs::remove_file(&rig.path).unwrap();
    std::os::unix::fs::symlink(&other, &rig.path).unwrap();
    let before = mode(&other);
    let address = rig.endpoint.local_address().unwrap();
    assert!(permit(&address, Policy { group: Some(0) }).is_err());
    assert_eq!(mode(&other), before);
}

#[test]
fn other_users_may_not_ask_unless_they_are_of_the_group() {
    let name =
        "control::server::tests::access::other_users_may_not_ask_unless_they_are_of_the_group";
    if let Some(path) = env::var_os(ROLE) {
        let mut hand = Hand::connect(Path::new(&path));
        hand.send(STATUS);
        println!("answer {}", hand.read().unwrap());
        return;
    }
    if !is_root() {
        skip!("other_users_may_not_ask_unless_they_are_of_the_group", "only root has other users");
    }
    const NOBODY: u32 = 65534;
    let as_other = |path: PathBuf, group: u32| {
        move || {
            // The way to the file may be closed to others.
            let executable = File::open(env::current_exe().unwrap()).unwrap();
            let run = Launch::of(format!("/proc/self/fd/{}", executable.as_raw_fd()))
                .inherit(executable)
                .args(["--exact", name, "--nocapture"])
                .env(ROLE, path)
                .user(NOBODY, group);
            run.start().finish(soon()).unwrap().stdout()
        }
    };
    // Somebody has opened the socket to all: the answer is the last thing that keeps others out.
    let open = |policy| {
        let folder = Folder::create().open_to_all();
        let path = folder.join("control");
        let rig = Rig::with(folder, path.as_path().into(), policy);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        rig
    };
    for (policy, group, allowed) in
        [(None, 4242, false), (Some(4242), 4242, true), (Some(4242), 4243, false)]
    {
        let mut rig = open(Policy { group: policy });
        let path = rig.path.clone();
        let mut asked = 0;
        let printed = rig.serve_during(as_other(path, group), |server, client, _| {
            asked += 1;
            server.answer(client, &done());
        });
        let expected = if allowed { "\"type\":\"done\"" } else { "\"code\":\"forbidden\"" };
        assert!(printed.contains(expected), "{policy:?} {group}: {printed}");
        assert_eq!(asked, u64::from(allowed));
    }
}

#[test]
fn a_supplementary_group_counts() {
    let name = "control::server::tests::access::a_supplementary_group_counts";
    if let Some(path) = env::var_os(ROLE) {
        let mut hand = Hand::connect(Path::new(&path));
        hand.send(STATUS);
        println!("answer {}", hand.read().unwrap());
        return;
    }
    if !is_root() {
        skip!("a_supplementary_group_counts", "only root may change groups");
    }
    if !Path::new("/usr/bin/setpriv").exists() {
        skip!("a_supplementary_group_counts", "there is no setpriv");
    }
    let folder = Folder::create().open_to_all();
    let mut rig = {
        let path = folder.join("control");
        let rig = Rig::with(folder, bind_how(&path), Policy { group: Some(4242) });
        permit(&rig.endpoint.local_address().unwrap(), Policy { group: Some(4242) }).unwrap();
        rig
    };
    // More of them than fit the first look.
    let groups: Vec<String> = (4200..4300).map(|group: u32| group.to_string()).collect();
    let path = rig.path.clone();
    let work = move || {
        let executable = File::open(env::current_exe().unwrap()).unwrap();
        let program = format!("/proc/self/fd/{}", executable.as_raw_fd());
        let run = Launch::of("/usr/bin/setpriv")
            .args(["--reuid=65534", "--regid=65534", "--groups", &groups.join(",")])
            .arg(program)
            .inherit(executable)
            .args(["--exact", name, "--nocapture"])
            .env(ROLE, path);
        run.start().finish(soon()).unwrap().stdout()
    };
    let printed = rig.serve_during(work, |server, client, _| server.answer(client, &done()));
    assert!(printed.contains("\"type\":\"done\""), "{printed}");
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}
