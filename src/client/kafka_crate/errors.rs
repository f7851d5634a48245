//! Why a call of crate `kafka` failed, in words, and whether trying again can help.

use std::fmt::Display;
use std::io::{self, ErrorKind};

use kafka::error::{Error as KafkaError, KafkaCode};

use super::Broker;
use crate::client::sentences;
use crate::error::Error;

/// Why a call did not succeed.
#[derive(Debug)]
pub(super) enum CallError {
    /// The broker answered with this error.
    Code(KafkaCode),
    /// The connection broke, or no answer came in time.
    Connection {
        why: String,
        hint: Option<&'static str>,
    },
    /// A record is compressed, and nothing was read.
    Compressed,
    /// Trying again can't help.
    Fatal(Error),
}

impl CallError {
    pub(super) fn connection(why: impl Display) -> CallError {
        CallError::Connection {
            why: why.to_string(),
            hint: None,
        }
    }

    /// What came is not an answer.
    pub(super) fn no_sense() -> CallError {
        CallError::connection("the answer made no sense")
    }

    /// The topic is replicated or spread over more than one broker, which this client is not for.
    pub(super) fn several_brokers(topic: &str) -> CallError {
        CallError::Fatal(
            Error::failed(
                format!("cannot use topic '{topic}'"),
                "it is led by several brokers, which needs a build with the feature librdkafka",
            )
            .hint(sentences::BUILD_WITH_LIBRDKAFKA),
        )
    }

    /// The small broker creates each topic that it is asked about, unless it can't.
    pub(super) fn not_created(broker: &Broker, topic: &str) -> CallError {
        CallError::Fatal(Error::failed(
            format!("cannot use topic '{topic}' on {}", broker.server),
            "the small broker could not create it; the program that runs it says why",
        ))
    }

    /// The cause, as half a sentence.
    pub(super) fn why(&self, broker: &Broker) -> String {
        match self {
            // The small broker answers so when a file cannot be used.
            CallError::Code(KafkaCode::Unknown) if broker.is_small() => {
                "the broker could not use its log; the program that runs it says why".into()
            }
            CallError::Code(code) => meaning(*code).into(),
            CallError::Connection { why, .. } => why.clone(),
            CallError::Compressed => "a record is compressed".into(),
            CallError::Fatal(error) => error.to_string(),
        }
    }

    pub(super) fn is_fatal(&self) -> bool {
        match self {
            CallError::Code(code) => matches!(
                code,
                KafkaCode::InvalidTopic
                    | KafkaCode::TopicAuthorizationFailed
                    | KafkaCode::GroupAuthorizationFailed
                    | KafkaCode::ClusterAuthorizationFailed
                    | KafkaCode::UnsupportedVersion
            ),
            CallError::Connection { .. } | CallError::Compressed => false,
            CallError::Fatal(_) => true,
        }
    }

    /// The error of a call about `topic` that is not tried again.
    pub(super) fn into_error(self, broker: &Broker, topic: &str) -> Error {
        let server = &broker.server;
        let doing = format!("cannot use topic '{topic}' on {server}");
        let why = self.why(broker);
        match self {
            CallError::Fatal(error) => error,
            CallError::Code(
                KafkaCode::TopicAuthorizationFailed | KafkaCode::GroupAuthorizationFailed,
            ) => Error::denied(doing, why),
            CallError::Code(KafkaCode::UnknownTopicOrPartition) => {
                Error::failed(doing, why).hint(sentences::create_topic(server, topic))
            }
            CallError::Connection {
                hint: Some(hint), ..
            } => Error::failed(doing, why).hint(hint),
            _ => Error::failed(doing, why),
        }
    }
}

impl From<KafkaError> for CallError {
    fn from(error: KafkaError) -> CallError {
        match error {
            KafkaError::Kafka(code)
            | KafkaError::TopicPartitionError {
                error_code: code, ..
            } => CallError::Code(code),
            KafkaError::UnsupportedCompression => CallError::Compressed,
            KafkaError::ArcSelf(inner) => match &*inner {
                KafkaError::Kafka(code) => CallError::Code(*code),
                other => CallError::connection(other),
            },
            KafkaError::NoHostReachable => CallError::connection("no broker can be reached"),
            KafkaError::Io(error) => error.into(),
            other => CallError::connection(other),
        }
    }
}

impl From<io::Error> for CallError {
    fn from(error: io::Error) -> CallError {
        match error.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionAborted => CallError::Connection {
                why: "the broker closed the connection".into(),
                // Only such a build meets more than the small broker here.
                hint: (!cfg!(feature = "librdkafka")).then_some(
                    "If it wants a login, that needs a build with the feature librdkafka.",
                ),
            },
            ErrorKind::TimedOut | ErrorKind::WouldBlock => {
                CallError::connection("no answer in time")
            }
            ErrorKind::InvalidData => CallError::no_sense(),
            _ => CallError::connection(error),
        }
    }
}

/// A broker's error code as half a sentence.
fn meaning(code: KafkaCode) -> &'static str {
    match code {
        KafkaCode::OffsetOutOfRange => "the log does not have that offset",
        KafkaCode::CorruptMessage => "a message was damaged in transit",
        KafkaCode::UnknownTopicOrPartition => "the topic is not there",
        KafkaCode::LeaderNotAvailable => "the partition has no leader at the moment",
        KafkaCode::MessageSizeTooLarge | KafkaCode::RecordListTooLarge => {
            "it is larger than the broker takes (its message.max.bytes)"
        }
        KafkaCode::GroupLoadInProgress
        | KafkaCode::GroupCoordinatorNotAvailable
        | KafkaCode::NotCoordinatorForGroup => "the group's coordinator is not ready",
        KafkaCode::InvalidTopic => "the broker does not take that topic's name",
        KafkaCode::TopicAuthorizationFailed => "you are not allowed to use this topic",
        KafkaCode::GroupAuthorizationFailed => "you are not allowed to use this consumer group",
        KafkaCode::ClusterAuthorizationFailed => "you are not allowed to use this cluster",
        KafkaCode::UnsupportedVersion => "the broker no longer speaks this version",
        KafkaCode::UnknownMemberId
        | KafkaCode::IllegalGeneration
        | KafkaCode::RebalanceInProgress => sentences::GROUP_IN_USE,
        KafkaCode::Unknown => "the broker had an error of its own, which its log may explain",
        // Crate kafka knows none of the newer codes.
        _ => "the broker answered with an error that this client does not know",
    }
}
