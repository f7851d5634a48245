//! A segment file, as a crash or another program may have left it.

#![no_main]

use std::cell::LazyCell;

use kafka_chat::broker::fuzz;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

thread_local! {
    static DIR: LazyCell<TempDir> = LazyCell::new(|| tempfile::tempdir().expect("a folder"));
}

fuzz_target!(|segment: &[u8]| DIR.with(|dir| fuzz::log(dir.path(), segment)));
