//! Notices that a small broker serves another log than before, by the first answer on each new connection: the broker's
//! list of APIs, which librdkafka shows only in its log. It comes before any record does.

use std::collections::BTreeMap;

use crate::broker::identity;
use crate::wire::ApiVersion;

/// The most threads whose lines are told apart: each connection has one.
const MAX_THREADS: usize = 100;

/// A thread of a client: clients name theirs alike.
type Thread = (usize, String);

/// The log that a client reads. Its lines come with `debug=feature`.
#[derive(Debug)]
pub(super) struct FollowedLog {
    id: u32,
    /// What is being listed, by the thread that receives it.
    listed: BTreeMap<Thread, Vec<ApiVersion>>,
    is_another: bool,
}

impl FollowedLog {
    /// The log with this identity.
    pub(super) fn new(id: u32) -> FollowedLog {
        FollowedLog {
            id,
            listed: BTreeMap::new(),
            is_another: false,
        }
    }

    /// Takes note of a log line of a connection of `client`, a number that no other client has. It begins with the name
    /// of its thread.
    pub(super) fn on_log(&mut self, client: usize, line: &str) {
        let Some((thread, text)) = line.split_once("]: ") else {
            return;
        };
        let thread = (client, thread.to_string());
        if text.contains("Broker API support:") {
            // No small broker leads to so many connections.
            self.is_another |= self.listed.len() == MAX_THREADS;
            self.listed.insert(thread, Vec::new());
        } else if text.contains(" Feature ") {
            // The list is complete.
            if let Some(apis) = self.listed.remove(&thread) {
                self.is_another |= identity::of(&apis) != Some(self.id);
            }
        } else if let (Some(api), Some(apis)) = (api(text), self.listed.get_mut(&thread)) {
            apis.push(api);
        }
    }

    /// Whether a connection was made to another log.
    pub(super) fn is_another(&self) -> bool {
        self.is_another
    }
}

/// `…ApiKey NAME (KEY) Versions MIN..MAX`
fn api(text: &str) -> Option<ApiVersion> {
    let (_, api) = text.split_once("ApiKey ")?;
    let (key, versions) = api.split_once(") Versions ")?;
    let (_, key) = key.rsplit_once('(')?;
    let (min, max) = versions.trim_end().split_once("..")?;
    Some(ApiVersion {
        api_key: key.parse().ok()?,
        min_version: min.parse().ok()?,
        max_version: max.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREAD: &str = "[thrd:127.0.0.1:9092/bootstrap]: 127.0.0.1:9092/bootstrap: ";
    const OTHER_THREAD: &str = "[thrd:127.0.0.1:9092/7]: 127.0.0.1:9092/7: ";
    const START: &str = "Broker API support:";
    const PRODUCE: &str = "  ApiKey Produce (0) Versions 0..2";
    const END: &str = " Feature MsgVer1: Produce (2..2) supported by broker";

    /// Whether the log is another one than 32770, which is published as 1 and 2.
    fn is_another(lines: &[(&str, &str)]) -> bool {
        let mut log = FollowedLog::new((1 << 15) + 2);
        for (thread, text) in lines {
            log.on_log(1, &format!("{thread}{text}"));
        }
        log.is_another()
    }

    #[test]
    fn lists_of_two_clients_whose_threads_have_the_same_name_are_told_apart() {
        let (high, low, wrong) = (half(32001, 1), half(32002, 2), half(32002, 3));
        for (second, expected) in [(&low, false), (&wrong, true)] {
            let mut log = FollowedLog::new((1 << 15) + 2);
            for (client, text) in [
                (1, START),
                (1, &*high),
                (2, START),
                (2, &*high),
                (1, &*low),
                (1, END),
                (2, &**second),
                (2, END),
            ] {
                log.on_log(client, &format!("{THREAD}{text}"));
            }
            assert_eq!(log.is_another(), expected, "{second}");
        }
    }

    fn half(key: i16, value: i16) -> String {
        format!("  ApiKey Unknown-{key}? ({key}) Versions 0..{value}")
    }

    #[test]
    fn the_log_is_known_by_what_its_broker_lists() {
        let listing = |high, low| {
            let (high, low) = (half(32001, high), half(32002, low));
            is_another(&[
                (THREAD, START),
                (THREAD, PRODUCE),
                (THREAD, &high),
                (THREAD, &low),
                (THREAD, END),
            ])
        };
        assert!(!listing(1, 2));
        assert!(listing(1, 3));
        assert!(listing(0, 2));
        assert!(is_another(&[
            (THREAD, START),
            (THREAD, PRODUCE),
            (THREAD, END)
        ]));
    }

    #[test]
    fn lists_of_two_connections_are_told_apart() {
        let (high, low, wrong) = (half(32001, 1), half(32002, 2), half(32002, 3));
        let both = |second: &str| {
            is_another(&[
                (THREAD, START),
                (OTHER_THREAD, START),
                (THREAD, &high),
                (OTHER_THREAD, &high),
                (OTHER_THREAD, second),
                (THREAD, &low),
                (THREAD, END),
                (THREAD, END),
                (OTHER_THREAD, END),
            ])
        };
        assert!(!both(&low));
        assert!(both(&wrong));
    }
}
