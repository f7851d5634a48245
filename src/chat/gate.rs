//! Which lines get into a chat: with a secret only those that it opens, without it only those that are not sealed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::Parties;
use super::conversation::Line;
use crate::client::{Cluster, Consumer, Event, Record};
use crate::ending::say;
use crate::error::{Error, Result};
use crate::name::Name;
use crate::opener::{EarlierLine, Opener, Wanted};
use crate::seal::{Read, Secret, is_dated, is_sealed};
use crate::time;

/// What has to be done before lines are sent to a peer whose lines are sealed.
const HOW_TO_GO_ON: &str = "restart with the secret (--secret-file), or with --plain";

/// The gate of one chat.
pub(super) enum Gate {
    /// The chat is sealed.
    Sealed(Box<Opener>),
    /// It is not.
    Plain(Downgrade),
}

/// What a chat without the secret does once the peer's lines are sealed: it sends nothing more, unless the user wants it.
/// Otherwise what is meant for the secret's owners alone would be answered for all to read.
#[derive(Debug, Clone)]
pub(super) struct Downgrade {
    peer: Name,
    is_allowed: bool,
    /// Whether a sealed line of the peer has come. Shared with the thread that reads input.
    has_come: Arc<AtomicBool>,
}

impl Downgrade {
    /// With `is_allowed`, lines are sent all the same.
    pub(super) fn new(peer: &Name, is_allowed: bool) -> Downgrade {
        Downgrade {
            peer: peer.clone(),
            is_allowed,
            has_come: Arc::default(),
        }
    }

    /// Why no lines are sent.
    pub(super) fn refusal(&self) -> Option<Error> {
        let is_refused = !self.is_allowed && self.has_come.load(Ordering::SeqCst);
        let peer = &self.peer;
        is_refused.then(|| Error::failed(format!("{peer}'s lines are sealed"), HOW_TO_GO_ON))
    }

    /// Takes a sealed line. Returns what to say, once.
    fn on_sealed(&self) -> Option<String> {
        let peer = &self.peer;
        (!self.has_come.swap(true, Ordering::SeqCst)).then(|| match self.is_allowed {
            true => format!("{peer}'s lines are sealed, and not shown"),
            false => format!(
                "{peer}'s lines are sealed, and not shown; to read them, and to send more, {HOW_TO_GO_ON}"
            ),
        })
    }
}

impl Gate {
    /// For the lines that `consumer` is about to read. Of a sealed chat it also returns the peer's last lines before
    /// those: `count` of them at most.
    pub(super) fn open(
        cluster: &dyn Cluster,
        parties: &Parties,
        secret: Option<&Secret>,
        count: usize,
        downgrade: &Downgrade,
        consumer: &mut dyn Consumer,
    ) -> Result<(Gate, Vec<Line>)> {
        let Some(secret) = secret else {
            return Ok((Gate::Plain(downgrade.clone()), Vec::new()));
        };
        let topic = parties.reads();
        let open = |start| cluster.consumer(topic, start);
        let wanted = Wanted {
            sender: Some(&parties.peer),
            count,
            report: |event| say(event),
        };
        let mut opener = Opener::new(secret, topic, consumer, open, &wanted)?;
        let earlier = std::mem::take(&mut opener.earlier);
        let earlier = earlier.into_iter().map(earlier_line).collect();
        Ok((Gate::Sealed(Box::new(opener)), earlier))
    }

    /// Takes a line that would be shown. Returns what to say first, and the line, if it is shown.
    pub(super) fn pass(&mut self, line: Line, now: Instant) -> (Option<String>, Option<Line>) {
        match self {
            Gate::Plain(downgrade) if is_sealed(&line.text) => {
                let is_peers = line.key == downgrade.peer.as_bytes();
                (is_peers.then(|| downgrade.on_sealed()).flatten(), None)
            }
            Gate::Plain(_) => (None, Some(line)),
            Gate::Sealed(opener) => {
                let record = Record {
                    partition: line.partition,
                    offset: line.offset,
                    key: Some(&line.key),
                    value: Some(&line.text),
                    ..Record::default()
                };
                let Read {
                    notice,
                    line: opened,
                } = opener.read(&record, now);
                let opened = opened.map(|opened| Line {
                    time: Some(opened.clock),
                    is_dated: is_dated(opened.clock, time::now()),
                    text: opened.text().to_vec(),
                    ..line
                });
                (notice, opened)
            }
        }
    }

    /// The peer's earlier lines were sealed, and not opened. Returns what to say.
    pub(super) fn on_sealed(&mut self) -> Option<String> {
        match self {
            Gate::Sealed(_) => None,
            Gate::Plain(downgrade) => downgrade.on_sealed(),
        }
    }

    /// What to say about lines for which nothing was said so far.
    pub(super) fn counts(&mut self, is_end: bool, now: Instant) -> Vec<String> {
        match self {
            Gate::Sealed(opener) => opener.counts(is_end, now),
            Gate::Plain(_) => Vec::new(),
        }
    }

    pub(super) fn on_event(&mut self, event: &Event) {
        if let Gate::Sealed(opener) = self {
            opener.on_event(event);
        }
    }

    /// Why no lines are sent.
    pub(super) fn refusal(&self) -> Option<Error> {
        match self {
            Gate::Sealed(_) => None,
            Gate::Plain(downgrade) => downgrade.refusal(),
        }
    }

    pub(super) fn is_sealed(&self) -> bool {
        matches!(self, Gate::Sealed(_))
    }

    /// What to say at the start.
    pub(super) fn greeting(&self) -> Option<&'static str> {
        const SEALED: &str =
            "lines are sealed: only those who have the secret can read or write them";
        self.is_sealed().then_some(SEALED)
    }
}

/// A line before the start, as a chat shows it.
pub(super) fn earlier_line(earlier: EarlierLine) -> Line {
    let clock = earlier.line.clock;
    Line {
        partition: earlier.partition,
        offset: earlier.offset,
        key: earlier.key,
        text: earlier.line.text().to_vec(),
        time: Some(clock),
        is_dated: is_dated(clock, time::now()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        Line {
            partition: 0,
            offset: 0,
            key: b"bob".to_vec(),
            text: text.into(),
            time: None,
            is_dated: false,
        }
    }

    #[test]
    fn without_the_secret_a_sealed_line_is_not_shown_and_stops_what_is_sent_unless_that_is_wanted()
    {
        for (is_allowed, said) in [
            (
                false,
                "bob's lines are sealed, and not shown; to read them, and to send more, restart with the secret \
                 (--secret-file), or with --plain",
            ),
            (true, "bob's lines are sealed, and not shown"),
        ] {
            let downgrade = Downgrade::new(&"bob".parse().unwrap(), is_allowed);
            let mut gate = Gate::Plain(downgrade.clone());
            let now = Instant::now();
            assert_eq!(gate.pass(line("hi"), now), (None, Some(line("hi"))));
            let unsigned = Line {
                key: Vec::new(),
                ..line("sealed1:AAAA")
            };
            assert_eq!(gate.pass(unsigned, now), (None, None));
            assert!(downgrade.refusal().is_none());
            let sealed = line("sealed1:AAAA");
            assert_eq!(gate.pass(sealed.clone(), now), (Some(said.into()), None));
            assert_eq!(gate.pass(sealed, now), (None, None));
            assert_eq!(gate.pass(line("hi"), now), (None, Some(line("hi"))));
            assert_eq!(downgrade.refusal().is_some(), !is_allowed);
        }
    }
}
