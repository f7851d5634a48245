//! When the bell rings: once for each burst of the peer's messages.

use std::time::{Duration, Instant};

use crate::name::Name;

/// A message this long after the one before begins a new burst.
const PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Bell {
    peer: Name,
    /// When the peer's last message came.
    last: Option<Instant>,
}

impl Bell {
    pub(super) fn new(peer: &Name) -> Bell {
        Bell {
            peer: peer.clone(),
            last: None,
        }
    }

    /// Whether a message that comes now is to ring.
    pub(super) fn rings(&mut self, sender: &str, now: Instant) -> bool {
        if sender != self.peer.as_str() {
            return false;
        }
        let before = self.last.replace(now);
        before.is_none_or(|before| now.duration_since(before) >= PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_the_peer_rings_once_and_others_never() {
        let mut bell = Bell::new(&"bob".parse().unwrap());
        let start = Instant::now();
        for (sender, second, rings) in [
            ("(unsigned)", 0, false),
            ("bob", 0, true),
            ("bob", 0, false),
            ("bob", 1, false),
            ("bob", 2, false),
            ("(unsigned)", 3, false),
            ("bob", 4, true),
            ("bob", 5, false),
            ("bob", 100, true),
        ] {
            let now = start + Duration::from_secs(second);
            assert_eq!(bell.rings(sender, now), rings, "{sender} at {second}");
        }
    }
}
