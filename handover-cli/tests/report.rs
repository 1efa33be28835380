//! The page that `--report` writes tells what happened, and can be read on any screen.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::page::{Page, Scheme, Screen, chromium};
use support::{OnUpgrade, Reply, Service, Verified};

#[test]
fn the_page_of_a_faithful_service_says_that_nothing_was_lost() {
    let (verified, page) = report(&Service::start(|_| Reply::Answer), &[]);
    verified.assert_nothing_lost();
    let requests = verified.count("requests");
    page.assert_tells(&format!("2 of 2 upgrades, {requests} requests, none lost"));
    page.assert_tells(&format!("every one of {requests} requests got its whole answer"));
    page.assert_is_self_contained();
    page.assert_marks_upgrades(2);
    assert_eq!(page.processes(), ["1", "2", "3"]);
}

#[test]
fn every_lost_request_is_listed_with_its_kind_and_its_place() {
    let (verified, page) = report(&cutting(), &["--keep-alive", "10"]);
    let lost = verified.count("lost");
    assert!(lost > 0, "{verified:#?}");
    page.assert_tells(&format!(
        "2 of 2 upgrades, {} requests, {lost} lost",
        verified.count("requests")
    ));
    page.assert_is_self_contained();
    page.assert_marks_upgrades(2);
    let losses = page.losses();
    assert_eq!(losses.len() as u64, lost.min(200));
    for loss in &losses {
        assert!(loss.starts_with("cut · "), "{loss}");
        assert!(loss.contains("new connection") || loss.contains("kept connection"), "{loss}");
        assert!(loss.contains("upgrade 1") || loss.contains("upgrade 2"), "{loss}");
        assert!(loss.contains("the connection ended in the middle of the answer"), "{loss}");
    }
}

#[test]
fn an_outage_is_listed_up_to_a_bound() {
    let outage = OnUpgrade::StopListening(Duration::from_millis(500));
    let service = Service::start_with(outage, |_| Reply::Answer);
    let (verified, page) = report(&service, &["--rate", "1000", "--upgrades", "1"]);
    let lost = verified.count("lost");
    assert!(lost > 200, "{verified:#?}");
    assert_eq!(page.losses().len(), 200);
    page.assert_tells(&format!("and {} more", lost - 200));
}

#[test]
fn an_upgrade_that_did_not_happen_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("page.html");
    let service = Service::start(|_| Reply::Answer);
    let args = ["--upgrades", "1", "--report", path.to_str().unwrap()];
    let verified = service.verify_with("echo '<no & such>' >&2; exit 3", &args);
    assert_eq!(verified.code, 1);
    let page = Page::read(&path);
    page.assert_tells("0 of 1 upgrade, ");
    page.assert_tells("Upgrade 1: COMMAND failed (exit status: 3): <no & such>");
    page.assert_tells("not seen");
    page.assert_is_self_contained();
}

#[test]
fn a_test_that_broke_off_has_a_page_as_well() {
    let service = Service::start(|_| Reply::Counter);
    let (verified, page) = report(&service, &["--every", "1s", "--rate", "500"]);
    assert_eq!((verified.code, verified.stdout.as_str()), (1, ""));
    page.assert_tells("The test broke off: nearly every answer tells of another process");
    page.assert_tells("✗ failed");
}

#[test]
fn the_page_tells_how_to_make_the_test_again() {
    let service = Service::start(|_| Reply::Answer);
    let (_, page) = report(&service, &["--rate", "50"]);
    page.assert_tells(&format!("handover verify \\\n  --url {}", service.url()));
    page.assert_tells("--rate 50 \\\n  --keep-alive 4");
}

#[test]
fn a_page_that_cannot_be_written_is_an_error_before_the_test() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing/page.html");
    // Whatever the upgrade did would show.
    let witness = folder.path().join("witness");
    let upgrade = format!("touch '{}'", witness.display());
    let service = Service::start(|_| Reply::Answer);
    let verified = service.verify_with(&upgrade, &["--report", missing.to_str().unwrap()]);
    assert_eq!((verified.code, verified.stdout.as_str()), (1, ""));
    assert!(verified.stderr.contains("make it first"), "{}", verified.stderr);
    assert!(!witness.exists(), "the test was run");

    let demo = Command::new(env!("CARGO_BIN_EXE_handover"))
        .args(["demo", "--report", missing.to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(demo.status.code(), Some(1));
    assert!(String::from_utf8(demo.stderr).unwrap().contains("make it first"));
}

#[test]
fn the_demo_writes_the_page_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("page.html");
    let output = demo(&path, &["--upgrades", "2", "--rate", "200", "--keep-alive", "5"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let page = Page::read(&path);
    page.assert_tells("2 of 2 upgrades, ");
    page.assert_tells("handover demo --upgrades 2 --every 300ms --rate 200 --keep-alive 5");
    page.assert_is_self_contained();
    page.assert_marks_upgrades(2);
    assert_eq!(page.processes(), ["1", "2", "3"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing but the page is left");
    // As any file that this process makes.
    let usual = folder.path().join("usual");
    fs::write(&usual, "").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&path), mode(&usual));
}

#[test]
fn the_page_fits_a_phone_and_a_wide_screen() {
    let Some(chromium) = chromium() else {
        handover_testkit::skip!("the_page_fits_a_phone_and_a_wide_screen", "no chromium here");
    };
    let artifacts = artifacts();
    let pages = ["report-passed", "report-failed"].map(|name| (name, artifacts.join(name)));
    let paths = pages.each_ref().map(|(_, path)| path.with_extension("html"));
    let output = demo(&paths[0], &["--upgrades", "20", "--rate", "500"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let failed = ["--report", paths[1].to_str().unwrap(), "--upgrades", "4", "--every", "500ms"];
    assert_eq!(cutting().verify(&failed).code, 1);

    for (name, path) in &pages {
        let page = Page::read(&path.with_extension("html"));
        for scheme in [Scheme::Light, Scheme::Dark] {
            let screens = [(390, 844), (1280, 800), (360, 640), (700, 900)];
            let screens = screens.map(|(width, height)| Screen { width, height });
            let seen = page.measure(&chromium, &screens, scheme);
            for (screen, seen) in screens.iter().zip(seen) {
                let what = format!("{name} on {screen:?}, {scheme:?}: {seen:?}");
                assert_eq!(seen.view_width, screen.width, "{what}");
                assert!(seen.page_width <= screen.width, "the page is too wide: {what}");
                assert_eq!(seen.is_dark, scheme == Scheme::Dark, "{what}");
                assert_eq!(seen.charts_shown, 2, "{what}");
                assert!(seen.smallest_text >= 9.5, "the text is too small: {what}");
                assert!(seen.page_height > screen.height, "{what}");
            }
        }
        for (width, height) in [(390, 844), (1280, 800)] {
            let screen = Screen { width, height };
            for (scheme, suffix) in [(Scheme::Light, ""), (Scheme::Dark, "-dark")] {
                let shot = artifacts.join(format!("{name}-{width}x{height}{suffix}.png"));
                page.screenshot(&chromium, screen, scheme, &shot);
            }
        }
    }
}

/// Runs `verify` with two quick upgrades, and reads its page.
fn report(service: &Service, args: &[&str]) -> (Verified, Page) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("page.html");
    let verified = service.verify(&[args, &["--report", path.to_str().unwrap()]].concat());
    (verified, Page::read(&path))
}

fn demo(path: &Path, args: &[&str]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_handover"));
    command.args(["demo", "--every", "300ms"]).arg("--report").arg(path);
    command.args(args).output().unwrap()
}

/// A service that, once upgraded, cuts some answers for a while.
fn cutting() -> Service {
    Service::start(|asked| match asked {
        _ if asked.upgrades > 0 && asked.since_upgrade < 40 && asked.since_upgrade % 5 == 0 => {
            Reply::CutBody
        }
        _ => Reply::Answer,
    })
}

/// Where pictures are kept for people to look at.
fn artifacts() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../artifacts");
    fs::create_dir_all(&path).unwrap();
    path
}
