//! A client of librdkafka that reads records, metadata or offsets.

use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::client::Client;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;

use super::create;
use super::status::{ClusterStatus, Context};
use super::topic::Asking;
use crate::error::Result;

/// How long one look takes at whether a client is closed.
const CLOSE_POLL: Duration = Duration::from_millis(1);

/// A reading client, which closes without delay.
pub(super) struct ReadClient(BaseConsumer<Context<()>>);

impl ReadClient {
    pub(super) fn create(config: &ClientConfig, status: &Arc<ClusterStatus>) -> Result<ReadClient> {
        create(config, status, ()).map(ReadClient)
    }

    /// Handles callbacks for a while; for a client without assigned partitions: records would be
    /// lost. Returns an error that was reported in place of a record.
    pub(super) fn serve(&self, duration: Duration) -> Option<KafkaError> {
        let end = Instant::now() + duration;
        let mut error = None;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            error = self.poll(left).and_then(Result::err).or(error);
            if left.is_zero() {
                return error;
            }
        }
    }

    /// Handles the callbacks that have arrived; as [`serve`](ReadClient::serve), for a client without assigned
    /// partitions.
    pub(super) fn serve_all(&self) {
        while self.poll(Duration::ZERO).is_some() {}
    }
}

impl Asking for ReadClient {
    type Role = ();

    fn as_client(&self) -> &Client<Context<()>> {
        self.0.client()
    }
}

impl Deref for ReadClient {
    type Target = BaseConsumer<Context<()>>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Drop for ReadClient {
    /// The crate closes it, too, but looks only every 100 ms whether that is done.
    fn drop(&mut self) {
        if self.close_queue().is_ok() {
            while !self.closed() {
                drop(self.poll(CLOSE_POLL));
            }
        }
    }
}
