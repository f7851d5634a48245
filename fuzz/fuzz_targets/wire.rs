//! A request, without its size, as anyone on the machine may send it.

#![no_main]

use kafka_chat::broker::fuzz;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|request: &[u8]| fuzz::wire(request.to_vec()));
