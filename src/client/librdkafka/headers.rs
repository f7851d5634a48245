//! A message's headers. Crate `rdkafka` panics on a name that is not UTF-8, which anyone can write into a topic.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};

use crate::client::Header;

thread_local! {
    /// This thread reads a header, and catches a panic about its name.
    static IS_READING: Cell<bool> = const { Cell::new(false) };
}

pub(super) fn headers<'a>(message: &'a BorrowedMessage<'_>) -> Vec<Header<'a>> {
    let Some(headers) = message.headers() else {
        return Vec::new();
    };
    leave_expected_panics_unreported();
    IS_READING.set(true);
    let header = |n| {
        let header = panic::catch_unwind(AssertUnwindSafe(|| headers.get(n)));
        header.map_or(Header::Unreadable, |it| Header::Named(it.key, it.value))
    };
    let all = (0..headers.count()).map(header).collect();
    IS_READING.set(false);
    all
}

/// Wraps the hook that prints panics: those that are caught here are not printed.
fn leave_expected_panics_unreported() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !IS_READING.get() {
                report(panic);
            }
        }));
    });
}
