//! librdkafka's errors as sentences.

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use crate::client::sentences;
use crate::error::Error;

/// A setting that librdkafka does not take. The error never shows a value, which might be a password.
pub(super) fn bad_setting(error: &KafkaError) -> Error {
    let reason = match error {
        // librdkafka may know the property by another name than the one that was given.
        KafkaError::ClientConfig(_, reason, name, _)
            if !reason.contains(&format!("\"{name}\"")) =>
        {
            format!("{name}: {reason}")
        }
        KafkaError::ClientConfig(_, reason, _, _) => reason.clone(),
        KafkaError::ClientCreation(reason) => reason.clone(),
        other => return Error::failed("cannot start librdkafka", other),
    };
    let error = Error::usage(&reason);
    match reason.to_lowercase().contains("openssl") {
        true => error.hint(
            "This build has no TLS and no SASL SCRAM. In the source folder: cargo install --path . --features tls",
        ),
        false => error,
    }
}

/// Whether the same request may succeed a little later.
pub(super) fn is_transient(error: &KafkaError) -> bool {
    !matches!(
        error.rdkafka_error_code(),
        Some(
            Code::TopicAuthorizationFailed
                | Code::GroupAuthorizationFailed
                | Code::ClusterAuthorizationFailed
                | Code::Fatal
                | Code::InvalidArgument
        )
    )
}

/// The sentence for an error of librdkafka; `doing` says what failed.
pub(super) fn failed(doing: &str, error: &KafkaError) -> Error {
    match error.rdkafka_error_code() {
        Some(code) => failed_by_code(doing, code),
        None => Error::failed(doing, error),
    }
}

/// As [`failed`], for a code.
pub(super) fn failed_by_code(doing: &str, code: Code) -> Error {
    let (why, needs) = match code {
        Code::TopicAuthorizationFailed => ("this user is not allowed to", ""),
        Code::GroupAuthorizationFailed => {
            ("this user is not allowed to use that consumer group", "")
        }
        // Asked for by idempotence when no topic may be written to, or before Kafka 2.8.
        Code::ClusterAuthorizationFailed => (
            "this user is not allowed to write idempotently",
            ": it takes Write on a topic, or IdempotentWrite on the cluster before Kafka 2.8",
        ),
        // The answer to a commit by a client that is no member of a group that has one.
        Code::UnknownMemberId | Code::IllegalGeneration | Code::RebalanceInProgress => {
            return Error::failed(doing, sentences::GROUP_IN_USE);
        }
        Code::PolicyViolation => {
            let why = "the broker has a policy against it, or as many topics as it may have";
            return Error::failed(doing, why);
        }
        code => return Error::failed(doing, meaning(code)),
    };
    Error::denied(doing, why).hint(format!(
        "Kafka's access control lists (kafka-acls.sh) decide that{needs}."
    ))
}

/// What a code means, without librdkafka's prefix that says whether it or the broker found it.
fn meaning(code: Code) -> String {
    let text = code.to_string();
    let inner = text
        .split_once('(')
        .map_or(text.as_str(), |(_, inner)| inner);
    let inner = inner.strip_suffix(')').unwrap_or(inner);
    let inner = inner.strip_prefix("Broker: ").unwrap_or(inner);
    inner.strip_prefix("Local: ").unwrap_or(inner).to_string()
}

/// What librdkafka says about a connection that failed.
#[derive(Debug, Clone)]
pub(super) struct Cause {
    /// Which broker, as `host:port`.
    pub(super) broker: String,
    pub(super) why: String,
}

impl Cause {
    /// Parses librdkafka's words: `sasl_ssl://host:9093/1: Connect to ipv4#10.0.0.1:9093 failed:
    /// Connection refused (after 0ms in state CONNECT)`.
    pub(super) fn parse(reason: &str) -> Cause {
        let reason = reason.strip_prefix("GroupCoordinator: ").unwrap_or(reason);
        let (place, why) = reason.split_once(": ").unwrap_or(("", reason));
        let address = place
            .rsplit_once("://")
            .map_or(place, |(_, address)| address);
        let broker = address.split('/').next().unwrap_or(address);
        let why = why.split(" (after ").next().unwrap_or(why);
        let why = why
            .strip_prefix("SASL authentication error: ")
            .unwrap_or(why);
        let why = match why.split_once(" failed: ") {
            Some((attempt, why)) if attempt.starts_with("Connect to") => why,
            _ if why.starts_with("Disconnected") => "the connection was closed",
            _ => why,
        };
        Cause {
            broker: broker.to_string(),
            why: why.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn librdkafkas_reasons_are_shortened() {
        let cases = [
            (
                "localhost:9092/1: Connect to ipv4#127.0.0.1:9092 failed: Connection refused (after 0ms in state CONNECT)",
                ("localhost:9092", "Connection refused"),
            ),
            (
                "GroupCoordinator: [::1]:9092: Disconnected: connection closed by peer (after 9ms in state UP)",
                ("[::1]:9092", "the connection was closed"),
            ),
            (
                "sasl_ssl://k:9093/bootstrap: SASL authentication error: Authentication failed (after 3ms in state AUTH_REQ)",
                ("k:9093", "Authentication failed"),
            ),
        ];
        for (reason, expected) in cases {
            let cause = Cause::parse(reason);
            assert_eq!((cause.broker.as_str(), cause.why.as_str()), expected);
        }
    }
}
