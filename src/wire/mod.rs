//! The bytes of Kafka's protocol: requests and responses, read and written. No sockets, no state.
//!
//! Only the versions in the table below are spoken, which are enough for a chat: the small broker reads
//! requests and writes responses; the probe, fetches that crate `kafka` can't make, and the tests do the
//! opposite. Field names are those of the specification, <https://kafka.apache.org/protocol>.
//!
//! `primitives` has the types that messages are made of, `request` and `response` list their fields.

use std::io::{self, ErrorKind, Read};

mod primitives;
mod request;
mod response;
#[cfg(test)]
mod tests;

use primitives::messages;
pub(crate) use primitives::{Reader, Result, Unreadable, Wire, Writer};
pub(crate) use request::*;
pub(crate) use response::*;

/// Declares the APIs that are spoken: each with its key, its oldest and newest version, and the
/// body of its requests.
macro_rules! apis {
    ($( $name:ident = $key:literal, versions $min:literal to $max:literal, $api:ident($body:ty); )*) => {
        $(
            #[doc = concat!("The API key of ", stringify!($api), ".")]
            pub const $name: i16 = $key;
        )*

        /// What is spoken, as ApiVersions lists it.
        pub(crate) const APIS: &[ApiVersion] = &[ $( ApiVersion {
            api_key: $key,
            min_version: $min,
            max_version: $max,
        } ),* ];

        /// The body of a request.
        #[derive(Debug, PartialEq, Eq)]
        pub(crate) enum Request<'a> {
            $( $api($body), )*
        }

        impl<'a> Request<'a> {
            fn read_body(api_key: i16, r: &mut Reader<'a>) -> Result<Self> {
                match api_key {
                    $( $key => Wire::read(r).map(Request::$api), )*
                    _ => Err(Unreadable),
                }
            }

            fn write_body(&self, w: &mut Writer) {
                match self {
                    $( Request::$api(body) => body.write(w), )*
                }
            }

            /// Which API is asked.
            pub(crate) fn api_key(&self) -> i16 {
                match self {
                    $( Request::$api(_) => $key, )*
                }
            }

            #[cfg(test)]
            fn any(api_key: i16, source: &mut tests::Source<'a>) -> Self {
                match api_key {
                    $( $key => Request::$api(tests::Any::any(source)), )*
                    _ => panic!("{api_key} is not spoken"),
                }
            }
        }
    };
}

apis! {
    PRODUCE = 0, versions 0 to 2, Produce(ProduceRequest<'a>);
    FETCH = 1, versions 0 to 2, Fetch(FetchRequest<'a>);
    LIST_OFFSETS = 2, versions 0 to 1, ListOffsets(ListOffsetsRequest<'a>);
    METADATA = 3, versions 0 to 1, Metadata(MetadataRequest<'a>);
    OFFSET_COMMIT = 8, versions 1 to 2, OffsetCommit(OffsetCommitRequest<'a>);
    OFFSET_FETCH = 9, versions 1 to 1, OffsetFetch(OffsetFetchRequest<'a>);
    FIND_COORDINATOR = 10, versions 0 to 0, FindCoordinator(FindCoordinatorRequest<'a>);
    API_VERSIONS = 18, versions 0 to 0, ApiVersions(ApiVersionsRequest);
}

/// Kafka's error codes, <https://kafka.apache.org/protocol#protocol_error_codes>.
pub(crate) mod code {
    use super::ErrorCode;

    pub(crate) const UNKNOWN_SERVER_ERROR: ErrorCode = ErrorCode { number: -1 };
    pub(crate) const NONE: ErrorCode = ErrorCode { number: 0 };
    pub(crate) const OFFSET_OUT_OF_RANGE: ErrorCode = ErrorCode { number: 1 };
    pub(crate) const CORRUPT_MESSAGE: ErrorCode = ErrorCode { number: 2 };
    pub(crate) const UNKNOWN_TOPIC_OR_PARTITION: ErrorCode = ErrorCode { number: 3 };
    pub(crate) const MESSAGE_TOO_LARGE: ErrorCode = ErrorCode { number: 10 };
    pub(crate) const OFFSET_METADATA_TOO_LARGE: ErrorCode = ErrorCode { number: 12 };
    pub(crate) const INVALID_TOPIC_EXCEPTION: ErrorCode = ErrorCode { number: 17 };
    pub(crate) const INVALID_REQUIRED_ACKS: ErrorCode = ErrorCode { number: 21 };
    pub(crate) const INVALID_GROUP_ID: ErrorCode = ErrorCode { number: 24 };
    pub(crate) const UNSUPPORTED_VERSION: ErrorCode = ErrorCode { number: 35 };
    pub(crate) const INVALID_REQUEST: ErrorCode = ErrorCode { number: 42 };
    pub(crate) const UNSUPPORTED_FOR_MESSAGE_FORMAT: ErrorCode = ErrorCode { number: 43 };
    pub(crate) const POLICY_VIOLATION: ErrorCode = ErrorCode { number: 44 };
    pub(crate) const KAFKA_STORAGE_ERROR: ErrorCode = ErrorCode { number: 56 };
    pub(crate) const UNSUPPORTED_COMPRESSION_TYPE: ErrorCode = ErrorCode { number: 76 };
}

messages! {
    /// What precedes the body of every request, after the API key.
    #[derive(Clone, Copy)]
    Header<'a> {
        /// The version of the request, and of its response.
        api_version: i16,
        /// Chosen by the client, and repeated in the response.
        correlation_id: i32,
        client_id: Option<&'a str>,
    }
}

impl Header<'_> {
    /// Whether this version of an API is spoken.
    pub(crate) fn is_spoken(&self, api_key: i16) -> bool {
        APIS.iter().any(|api| {
            let versions = api.min_version..=api.max_version;
            api.api_key == api_key && versions.contains(&self.api_version)
        })
    }
}

impl<'a> Request<'a> {
    /// Reads a request without its size.
    ///
    /// Fails if it is not a request in a version that is spoken here; as with Kafka, it has no
    /// response then. Only an ApiVersions request may have any version, since its sender cannot
    /// know better: of a newer one, only the header is read. No other has bytes left over, which would be kept in
    /// memory for as long as the request.
    ///
    /// It fails, too, if its arrays have more than `max_elements` together.
    pub(crate) fn read(
        request: &'a mut [u8],
        max_elements: usize,
    ) -> Result<(Header<'a>, Request<'a>)> {
        let mut r = Reader::new(request, 0);
        r.elements = max_elements;
        let api_key = i16::read(&mut r)?;
        let header = Header::read(&mut r)?;
        if !header.is_spoken(api_key) && api_key != API_VERSIONS {
            return Err(Unreadable);
        }
        r.version = header.api_version;
        let request = Request::read_body(api_key, &mut r)?;
        match r.bytes.is_empty() || api_key == API_VERSIONS {
            true => Ok((header, request)),
            false => Err(Unreadable),
        }
    }

    /// Writes the request with its size.
    pub(crate) fn write(&self, header: &Header<'_>) -> Vec<u8> {
        let mut w = Writer::new(header.api_version);
        self.api_key().write(&mut w);
        header.write(&mut w);
        self.write_body(&mut w);
        w.finish()
    }
}

/// Writes the response to the request with this header, with its size.
pub(crate) fn write_response<'a>(header: &Header<'_>, body: &impl Wire<'a>) -> Vec<u8> {
    let mut w = start_response(header);
    body.write(&mut w);
    w.finish()
}

fn start_response(header: &Header<'_>) -> Writer {
    let mut w = Writer::new(header.api_version);
    header.correlation_id.write(&mut w);
    w
}

/// Reads the response, without its size, to a request of this version.
///
/// Fails if it has another form or another correlation id, or if bytes are left over.
pub(crate) fn read_response<'a, T: Wire<'a>>(
    header: &Header<'_>,
    response: &'a mut [u8],
) -> Result<T> {
    let mut r = Reader::new(response, header.api_version);
    let correlation_id = i32::read(&mut r)?;
    let body = T::read(&mut r)?;
    match correlation_id == header.correlation_id && r.bytes.is_empty() {
        true => Ok(body),
        false => Err(Unreadable),
    }
}

/// How much memory a frame takes before any of it has come in.
pub(crate) const FIRST_CHUNK: usize = 1024;

/// Reads a frame: a size, and that many bytes, which are a request or a response.
///
/// Memory is taken in steps of what has come in so far, not by what the size claims. Fails with
/// [`ErrorKind::InvalidData`] if the size is negative or more than `max_bytes`.
pub fn read_frame(from: &mut impl Read, max_bytes: usize) -> io::Result<Vec<u8>> {
    let size = read_size(from, max_bytes)?;
    let mut frame = Vec::new();
    while frame.len() < size {
        let received = frame.len();
        let chunk = received.max(FIRST_CHUNK).min(size - received);
        frame.resize(received + chunk, 0);
        from.read_exact(&mut frame[received..])?;
    }
    Ok(frame)
}

/// Reads the size of a frame, and fails as [`read_frame`] does.
pub(crate) fn read_size(from: &mut impl Read, max_bytes: usize) -> io::Result<usize> {
    let mut size = [0; 4];
    from.read_exact(&mut size)?;
    let size = usize::try_from(i32::from_be_bytes(size)).ok();
    let size = size.filter(|size| *size <= max_bytes);
    Ok(size.ok_or(ErrorKind::InvalidData)?)
}
