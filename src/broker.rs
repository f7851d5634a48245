//! The embedded broker: enough of Kafka for a chat on one machine.
use crate::error::{Error, Result};
use std::net::TcpListener;
use std::path::Path;
pub struct Broker;
#[derive(Default)]
pub struct Config;
impl Broker {
    pub fn start(_l: TcpListener, _d: &Path, _c: Config) -> Result<Broker> {
        Err(Error::failed("x", "y"))
    }
}
pub fn identity(_: impl Iterator<Item = (i16, i16, i16)>) -> Option<u32> {
    None
}
pub fn log_id(_: &Path) -> Option<u32> {
    None
}
