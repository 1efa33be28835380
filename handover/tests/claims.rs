//! What an application may do while it claims something.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::fs::File;

use handover::{ClaimErrorKind, Handover};

#[test]
fn what_makes_a_descriptor_may_ask_the_library() {
    let handover = Handover::builder().start().unwrap();
    let made = handover.descriptor("null", || {
        assert_eq!(handover.generation(), 1);
        Ok(File::open("/dev/null")?.into())
    });
    let kept = made.unwrap();

    let taken = handover.descriptor("null", || Ok(File::open("/dev/null")?.into())).unwrap_err();
    assert!(matches!(taken.kind(), ClaimErrorKind::NameTaken), "{taken}");
    let itself = handover.descriptor("twice", || {
        let inner = handover.descriptor("twice", || Ok(File::open("/dev/null")?.into())).unwrap();
        std::mem::forget(inner);
        Ok(File::open("/dev/null")?.into())
    });
    assert!(matches!(itself.unwrap_err().kind(), ClaimErrorKind::NameTaken));
    drop(kept);
}
