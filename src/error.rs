//! What went wrong, as sentences for the person who reads them.

use std::fmt;

/// The result of everything that can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure: what was being done, why it failed, and what to do about it.
///
/// It carries no source error: the cause is part of its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: Kind,
    message: String,
    hint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Failed,
    TooLarge,
    Unacknowledged,
    Denied,
    Usage,
    ClosedPipe,
}

impl Error {
    fn new(kind: Kind, message: impl fmt::Display) -> Error {
        Error {
            kind,
            message: message.to_string(),
            hint: None,
        }
    }

    /// Something failed: `doing` says what was being done and with which broker, topic or line;
    /// `why` is the cause. Exit code 1.
    pub fn failed(doing: impl fmt::Display, why: impl fmt::Display) -> Error {
        Error::new(Kind::Failed, format_args!("{doing}: {why}"))
    }

    /// As [`Error::failed`], with a list of reasons, each on a line of its own.
    pub fn listed(doing: impl fmt::Display, reasons: &str) -> Error {
        Error::new(Kind::Failed, format_args!("{doing}:{reasons}"))
    }

    /// The command line, or an answer to a question, can't be used as it is. Exit code 2.
    pub fn usage(message: impl fmt::Display) -> Error {
        Error::new(Kind::Usage, message)
    }

    /// A line is larger than what the client or the broker takes.
    pub fn too_large() -> Error {
        Error::new(
            Kind::TooLarge,
            "too large: a broker takes about 1 MB, unless its message.max.bytes says otherwise",
        )
    }

    /// A line is larger than what `topic` takes.
    pub fn too_large_for(topic: impl fmt::Display, limit: usize) -> Error {
        Error::new(
            Kind::TooLarge,
            format_args!(
                "too large: topic {topic} takes at most {limit} bytes (max.message.bytes), of which Kafka needs about 70"
            ),
        )
    }

    /// A line is larger than what fits in a record once it is sealed: `most` bytes.
    pub fn too_large_to_seal(most: usize) -> Error {
        Error::new(
            Kind::TooLarge,
            format_args!("too large to be sealed: a sealed line has at most {most} bytes"),
        )
    }

    /// As [`Error::failed`], about a line that may have arrived or not.
    pub fn unacknowledged(doing: impl fmt::Display, why: impl fmt::Display) -> Error {
        Error::new(Kind::Unacknowledged, format_args!("{doing}: {why}"))
    }

    /// The same failure, of a line that may have arrived.
    pub fn may_have_arrived(self) -> Error {
        Error {
            kind: Kind::Unacknowledged,
            ..self
        }
    }

    /// As [`Error::failed`], because the broker does not allow it to this user: trying again does not help.
    pub fn denied(doing: impl fmt::Display, why: impl fmt::Display) -> Error {
        Error::new(Kind::Denied, format_args!("{doing}: {why}"))
    }

    /// Standard output was closed: a reason to end, and no failure. Exit code 0.
    pub fn closed_pipe() -> Error {
        Error::new(Kind::ClosedPipe, "standard output was closed")
    }

    /// The same error, with the size of the line before it.
    pub fn of_size(mut self, bytes: u64) -> Error {
        self.message = format!("{bytes} bytes, {}", self.message);
        self
    }

    /// Adds what the reader can do about it: a whole sentence.
    pub fn hint(mut self, hint: impl fmt::Display) -> Error {
        self.hint = Some(hint.to_string());
        self
    }

    /// Only what went wrong, for a sentence that goes on with a hint of its own.
    pub fn without_hint(mut self) -> Error {
        self.hint = None;
        self
    }

    /// Adds another failure after this one. A closed pipe yields to `other`.
    pub fn beside(self, other: Error) -> Error {
        if self.is_closed_pipe() {
            return other;
        }
        Error::new(self.kind, format_args!("{self}\n{other}"))
    }

    /// Whether this is [`Error::closed_pipe`], about which nothing is printed.
    pub fn is_closed_pipe(&self) -> bool {
        self.kind == Kind::ClosedPipe
    }

    /// Whether this is about a line that is too large, which says nothing of other lines.
    pub fn is_too_large(&self) -> bool {
        self.kind == Kind::TooLarge
    }

    /// Whether this is [`Error::unacknowledged`].
    pub fn is_unacknowledged(&self) -> bool {
        self.kind == Kind::Unacknowledged
    }

    /// Whether this is [`Error::denied`].
    pub fn is_denied(&self) -> bool {
        self.kind == Kind::Denied
    }

    /// What the process ends with because of this error.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Failed | Kind::TooLarge | Kind::Unacknowledged | Kind::Denied => 1,
            Kind::Usage => 2,
            Kind::ClosedPipe => 0,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n{hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_reads_as_a_sentence_and_a_remedy() {
        let error = Error::failed("cannot reach Kafka at nowhere:9092", "connection refused")
            .hint("Is the address right?");
        assert_eq!(
            error.to_string(),
            "cannot reach Kafka at nowhere:9092: connection refused\nIs the address right?"
        );
    }
}
