//! Whoever sends too much is not listened to for longer than anybody else.

use crate::common::Stage;

#[test]
fn successor_that_floods_the_channel_is_given_up_and_holds_nobody_up() {
    let stage = Stage::controlled(&["--ready-timeout", "3000"]);
    let server = stage.server();
    stage.script("start raw flood");
    let asked = stage.ask();
    asked.line("flooding ");
    // Operators are answered meanwhile.
    assert_eq!(stage.status().generations.len(), 2);
    let verdict = asked.verdict();
    assert!(verdict.contains("the successor took too long"), "{verdict}");
    stage.assert_unharmed(server);
}
