//! subscriber
fn main() {}
