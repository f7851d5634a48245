//! What tests of several modules use.

use std::thread;
use std::time::{Duration, Instant};

/// Much longer than anything takes that is waited for.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until this is true; if it never is, `what` is the error.
pub(crate) fn wait_until(what: &str, mut is_true: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_true() {
        assert!(start.elapsed() < DEADLINE, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}
