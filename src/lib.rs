//! Console chat over Apache Kafka: what the programs `publisher`, `subscriber` and `chat` share.
//!
//! A map, from what is typed to what lies on a disk:
//!
//! | module | knows | does not know |
//! |---|---|---|
//! | [`cli`] | the command line, the questions, how a program ends | what the programs do |
//! | [`name`] | what a user, and so a topic, can be called | who there is |
//! | [`lines`] | input of any bytes, line by line | what becomes of it |
//! | [`ledger`] | which lines are delivered | what is in them |
//! | [`progress`] | how far through its input a publisher is | the same |
//! | [`until`] | when a subscriber has read all it was asked for | what it read |
//! | [`session`] | how a chat is put together of the next three | their insides |
//! | [`conversation`] | who is shown, what is unread, whether the peer is here | Kafka, terminals |
//! | [`terminal`] | the line editor and the screen | Kafka, who may be shown |
//! | [`message`] | how others' bytes can be shown safely | who sent them |
//! | [`client`] | Kafka, by one small interface to two clients | what a line means |
//! | [`host`] | who runs the small broker, and who takes over | what it does |
//! | [`broker`] | the small broker: log, committed offsets, sockets | everything above |
//! | [`wire`] | the bytes of Kafka's protocol | sockets, logs |
//! | [`error`] | failures as sentences, and their exit codes | what failed |

pub mod broker;
pub mod chat;
pub mod cli;
pub mod client;
pub mod delivery;
pub mod ending;
pub mod error;
pub mod host;
pub mod lines;
pub mod name;
pub mod progress;
pub mod read_limit;
pub mod terminal;
pub mod wire;
