use std::fmt::Debug;

use proptest::prelude::*;

use super::*;

/// A response that has nothing but these.
type Topics<'a, P> = Vec<TopicData<'a, P>>;

/// Random bytes, which values of any type are made of. When none are left, the values are the
/// smallest.
pub(crate) struct Source<'a> {
    bytes: &'a mut [u8],
    pub(crate) version: i16,
}

impl<'a> Source<'a> {
    fn take(&mut self, size: usize) -> &'a mut [u8] {
        let size = size.min(self.bytes.len());
        self.bytes.split_off_mut(..size).unwrap_or_default()
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.take(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    /// How many elements a list has.
    fn count(&mut self) -> usize {
        usize::from(self.array::<1>()[0] % 4)
    }

    fn flag(&mut self) -> bool {
        self.count() > 0
    }

    fn any_bytes(&mut self) -> &'a mut [u8] {
        let size = self.array::<1>()[0] % 40;
        self.take(size.into())
    }

    fn text(&mut self) -> &'a str {
        let bytes = self.any_bytes();
        for byte in bytes.iter_mut() {
            *byte &= 0x7f;
        }
        // Some of the letters take two bytes.
        for pair in bytes.chunks_exact_mut(2).filter(|pair| pair[0] < 16) {
            pair.copy_from_slice("é".as_bytes());
        }
        str::from_utf8(bytes).unwrap()
    }
}

/// A type that any value of can be made from random bytes.
pub(crate) trait Any<'a> {
    fn any(source: &mut Source<'a>) -> Self;
}

macro_rules! any {
    ($($type:ty = $source:ident => $value:expr;)*) => { $(
        impl<'a> Any<'a> for $type {
            fn any($source: &mut Source<'a>) -> Self {
                $value
            }
        }
    )* };
}

any! {
    i8 = source => i8::from_be_bytes(source.array());
    i16 = source => i16::from_be_bytes(source.array());
    i32 = source => i32::from_be_bytes(source.array());
    i64 = source => i64::from_be_bytes(source.array());
    &'a mut [u8] = source => source.any_bytes();
    &'a str = source => source.text();
    Option<&'a str> = source => source.flag().then(|| source.text());
    String = source => source.text().to_string();
}

impl<'a, T: Any<'a>> Any<'a> for Vec<T> {
    fn any(source: &mut Source<'a>) -> Self {
        (0..source.count()).map(|_| T::any(source)).collect()
    }
}

impl<'a, T: Any<'a>> Any<'a> for Option<Vec<T>> {
    fn any(source: &mut Source<'a>) -> Self {
        source.flag().then(|| Any::any(source))
    }
}

fn random_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..600)
}

/// Every API in every version that is spoken.
fn spoken() -> Vec<(i16, i16)> {
    let versions = |api: &ApiVersion| {
        let key = api.api_key;
        (api.min_version..=api.max_version).map(move |version| (key, version))
    };
    APIS.iter().flat_map(versions).collect()
}

fn header(api_version: i16) -> Header<'static> {
    Header {
        api_version,
        correlation_id: 7,
        client_id: None,
    }
}

/// A request without its size, of which only the header is right.
fn request_of(api_key: i16, api_version: i16, body: &[&[u8]]) -> Vec<u8> {
    let mut bytes = [api_key.to_be_bytes(), api_version.to_be_bytes()].concat();
    bytes.extend(7i32.to_be_bytes());
    bytes.extend((-1i16).to_be_bytes());
    bytes.extend(body.concat());
    bytes
}

/// How many topics and partitions a request names.
fn elements(request: &Request<'_>) -> usize {
    fn sum<P>(topics: &[TopicData<'_, P>]) -> usize {
        topics.iter().map(|t| 1 + t.partitions.len()).sum()
    }
    match request {
        Request::ApiVersions(_) | Request::FindCoordinator(_) => 0,
        Request::Metadata(body) => body.topics.as_ref().map_or(0, Vec::len),
        Request::Produce(body) => sum(&body.topics),
        Request::Fetch(body) => sum(&body.topics),
        Request::ListOffsets(body) => sum(&body.topics),
        Request::OffsetCommit(body) => sum(&body.topics),
        Request::OffsetFetch(body) => sum(&body.topics),
    }
}

/// Writes any response of this type, and reads it again.
fn assert_read_as_written<'a, T>(version: i16, source: &'a mut [u8], written: &'a mut Vec<u8>)
where
    T: Wire<'a> + Any<'a> + PartialEq + Debug,
{
    let mut source = Source {
        bytes: source,
        version,
    };
    let response = T::any(&mut source);
    *written = write_response(&header(version), &response);
    let read = read_response::<T>(&header(version), &mut written[4..]);
    assert_eq!(read, Ok(response));
}

/// The same for the type of this API's responses.
fn assert_response_read_as_written(api_key: i16, version: i16, mut source: Vec<u8>) {
    let (s, written) = (&mut source, &mut Vec::new());
    match api_key {
        PRODUCE => assert_read_as_written::<ProduceResponse>(version, s, written),
        FETCH => assert_read_as_written::<FetchResponse>(version, s, written),
        LIST_OFFSETS => assert_read_as_written::<Topics<ListedPartition>>(version, s, written),
        METADATA => assert_read_as_written::<MetadataResponse>(version, s, written),
        OFFSET_COMMIT => assert_read_as_written::<Topics<CommittedPartition>>(version, s, written),
        OFFSET_FETCH => {
            assert_read_as_written::<Topics<OffsetFetchedPartition>>(version, s, written)
        }
        FIND_COORDINATOR => assert_read_as_written::<FindCoordinatorResponse>(version, s, written),
        API_VERSIONS => assert_read_as_written::<ApiVersionsResponse>(version, s, written),
        _ => panic!("API {api_key} has no response"),
    }
}

proptest! {
    #[test]
    fn a_request_is_read_as_it_was_written(
        (api_key, version) in prop::sample::select(spoken()),
        mut source in random_bytes(),
        correlation_id: i32,
        cut: prop::sample::Index,
    ) {
        let mut source = Source { bytes: &mut source, version };
        let header = Header { client_id: Any::any(&mut source), correlation_id, ..header(version) };
        let request = Request::any(api_key, &mut source);
        let mut written = request.write(&header);
        let (size, request_bytes) = written.split_first_chunk_mut().unwrap();
        prop_assert_eq!(i32::from_be_bytes(*size) as usize, request_bytes.len());
        let mut copy = request_bytes.to_vec();
        prop_assert_eq!(Request::read(&mut copy, usize::MAX), Ok((header, request)));
        let cut = cut.index(request_bytes.len());
        prop_assert_eq!(Request::read(&mut request_bytes[..cut], usize::MAX), Err(Unreadable));
    }

    #[test]
    fn a_response_is_read_as_it_was_written(
        (api_key, version) in prop::sample::select(spoken()),
        source in random_bytes(),
    ) {
        assert_response_read_as_written(api_key, version, source);
    }

    #[test]
    fn a_fetch_response_is_the_same_when_its_messages_are_read_into_it(
        version in 0i16..=2,
        mut source in random_bytes(),
    ) {
        let mut source = Source { bytes: &mut source, version };
        let response = FetchResponse { throttle_time_ms: 0, topics: Any::any(&mut source) };
        let asked: Vec<_> = response.topics.iter().map(|topic| TopicData {
            name: topic.name,
            partitions: topic.partitions.iter().map(|p| FetchPartition {
                partition: p.partition,
                ..FetchPartition::default()
            }).collect(),
        }).collect();
        let mut answers = response.topics.iter().flat_map(|topic| &topic.partitions);
        let written = fetch_response(&header(version), &asked, |_, _, out| {
            let answer = answers.next().unwrap();
            out.extend_from_slice(answer.records);
            (answer.error_code, answer.high_watermark)
        });
        prop_assert_eq!(written, write_response(&header(version), &response));
    }

    #[test]
    fn random_bytes_are_read_or_refused(
        (api_key, _) in prop::sample::select(spoken()),
        version in 0i16..4,
        body in prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(255), any::<u8>()], 0..200),
    ) {
        let mut bytes = request_of(api_key, version, &[&body]);
        let size = bytes.len();
        if let Ok((_, request)) = Request::read(&mut bytes, usize::MAX) {
            prop_assert!(elements(&request) * 2 <= size);
        }
        let _ = Request::read(&mut body.clone(), usize::MAX);
        let _ = read_response::<MetadataResponse>(&header(version), &mut body.clone());
        let _ = read_response::<Topics<ListedPartition>>(&header(version), &mut body.clone());
        let _ = read_response::<ApiVersionsResponse>(&header(version), &mut body.clone());
    }

    #[test]
    fn changed_requests_are_read_or_refused(
        (api_key, version) in prop::sample::select(spoken()),
        mut source in random_bytes(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut: prop::sample::Index,
    ) {
        let mut source = Source { bytes: &mut source, version };
        let mut bytes = Request::any(api_key, &mut source).write(&header(version)).split_off(4);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let size = bytes.len();
        if let Ok((_, request)) = Request::read(&mut bytes, usize::MAX) {
            prop_assert!(elements(&request) * 2 <= size);
        }
        let _ = Request::read(&mut bytes[..cut.index(size)], usize::MAX);
    }

    #[test]
    fn a_frame_is_read_whole_or_not_at_all(
        body in prop::collection::vec(any::<u8>(), 0..40_000),
        cut: prop::sample::Index,
    ) {
        let frame = [&(body.len() as i32).to_be_bytes()[..], &body].concat();
        let cut = &frame[..cut.index(frame.len())];
        prop_assert_eq!(read_frame(&mut &frame[..], body.len()).unwrap(), body);
        let error = read_frame(&mut &cut[..], usize::MAX).unwrap_err();
        prop_assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    }
}

#[test]
fn a_size_is_refused_if_it_is_negative_or_too_large() {
    for size in [i32::MAX, 101, -1, i32::MIN] {
        let frame = [&size.to_be_bytes()[..], &[0; 200]].concat();
        let error = read_frame(&mut &frame[..], 100).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{size}");
    }
}

#[test]
fn requests_are_written_as_the_specification_says() {
    let versions = Request::ApiVersions(ApiVersionsRequest {});
    let written = versions.write(&Header {
        client_id: Some("chat"),
        ..header(0)
    });
    let expected = b"\0\0\0\x0e\0\x12\0\0\0\0\0\x07\0\x04chat";
    assert_eq!(written, expected);

    let commit = |version| {
        let topics = vec![TopicData {
            name: "bob",
            partitions: vec![OffsetCommitPartition {
                partition: 1,
                committed_offset: 5,
                commit_timestamp: 6,
                committed_metadata: None,
            }],
        }];
        let request = Request::OffsetCommit(OffsetCommitRequest {
            group: "g",
            generation_id: -1,
            member_id: "m",
            retention_time_ms: 9,
            topics,
        });
        request.write(&header(version)).split_off(14)
    };
    let group = b"\0\x01g\xff\xff\xff\xff\0\x01m".as_slice();
    let topic = b"\0\0\0\x01\0\x03bob\0\0\0\x01\0\0\0\x01";
    let (five, six, nine) = (5i64.to_be_bytes(), 6i64.to_be_bytes(), 9i64.to_be_bytes());
    let null = b"\xff\xff";
    assert_eq!(commit(1), [group, topic, &five, &six, null].concat());
    assert_eq!(commit(2), [group, &nine, topic, &five, null].concat());
}

#[test]
fn only_api_versions_is_read_in_a_version_that_is_not_spoken() {
    let mut newer = request_of(API_VERSIONS, 3, &[b"\x0akcat\x00"]);
    let read = Request::read(&mut newer, usize::MAX);
    let expected = Request::ApiVersions(ApiVersionsRequest {});
    assert_eq!(read, Ok((header(3), expected)));
    for (key, version) in [
        (PRODUCE, 3),
        (OFFSET_COMMIT, 0),
        (METADATA, -1),
        (11, 0),
        (-1, 0),
    ] {
        let mut bytes = request_of(key, version, &[&[0; 64]]);
        assert_eq!(
            Request::read(&mut bytes, usize::MAX),
            Err(Unreadable),
            "{key} {version}"
        );
    }
}

#[test]
fn an_empty_list_means_all_topics_only_in_the_oldest_metadata_request() {
    let names = |version, topics: Option<Vec<&'static str>>| {
        let mut written = Request::Metadata(MetadataRequest { topics }).write(&header(version));
        match Request::read(&mut written[4..], usize::MAX) {
            Ok((_, Request::Metadata(body))) => body.names(version).map(|names| names.len()),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(names(0, Some(vec![])), None);
    assert_eq!(names(1, Some(vec![])), Some(0));
    assert_eq!(names(1, None), None);
    assert_eq!(names(0, Some(vec!["bob"])), Some(1));
}

#[test]
fn counts_and_lengths_beyond_the_request_are_refused() {
    for count in [i32::MAX, 1 << 20, 100, -2, i32::MIN] {
        let count = &count.to_be_bytes();
        let one = &1i32.to_be_bytes();
        let topic: &[u8] = b"\0\x03bob";
        for mut bytes in [
            request_of(METADATA, 0, &[count, topic]),
            request_of(OFFSET_FETCH, 1, &[topic, count, topic]),
            request_of(OFFSET_FETCH, 1, &[topic, one, topic, count, one]),
            request_of(
                PRODUCE,
                0,
                &[b"\0\x01", one, one, topic, one, one, count, b"abc"],
            ),
        ] {
            let copy = bytes.clone();
            assert_eq!(
                Request::read(&mut bytes, usize::MAX),
                Err(Unreadable),
                "{copy:?}"
            );
        }
    }
    for size in [i16::MAX, 6, -1, -2, i16::MIN] {
        let mut bytes = request_of(FIND_COORDINATOR, 0, &[&size.to_be_bytes(), b"group"]);
        assert_eq!(
            Request::read(&mut bytes, usize::MAX),
            Err(Unreadable),
            "{size}"
        );
    }
}

#[test]
fn a_response_with_another_correlation_id_or_with_more_bytes_is_refused() {
    let written = write_response(&header(0), &ApiVersionsResponse::default());
    let read = |header, bytes: &[u8]| {
        read_response::<ApiVersionsResponse>(&header, &mut bytes.to_vec()).is_ok()
    };
    assert!(read(header(0), &written[4..]));
    assert!(!read(header(0), &[&written[4..], &[0]].concat()));
    let other = Header {
        correlation_id: 8,
        ..header(0)
    };
    assert!(!read(other, &written[4..]));
}

#[test]
fn responses_are_written_as_the_specification_says() {
    let topic = |error_code, name, partitions| MetadataTopic {
        error_code,
        name,
        is_internal: 0,
        partitions,
    };
    let partition = MetadataPartition {
        error_code: code::NONE,
        partition: 0,
        leader_id: 3,
        replica_nodes: vec![3],
        isr_nodes: vec![3],
    };
    let response = MetadataResponse {
        brokers: vec![MetadataBroker {
            node: Node {
                node_id: 3,
                host: "h",
                port: 258,
            },
            rack: None,
        }],
        controller_id: 3,
        topics: vec![
            topic(code::NONE, "b", vec![partition]),
            topic(code::INVALID_TOPIC_EXCEPTION, "c", vec![]),
        ],
    };
    let bytes = [
        &[0, 0, 0, 75, 0, 0, 0, 7][..],
        &[0, 0, 0, 1, 0, 0, 0, 3, 0, 1, b'h', 0, 0, 1, 2, 0xff, 0xff],
        &[0, 0, 0, 3],
        &[0, 0, 0, 2],
        &[0, 0, 0, 1, b'b', 0],
        &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3],
        &[0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 3],
        &[0, 17, 0, 1, b'c', 0, 0, 0, 0, 0],
    ];
    assert_eq!(write_response(&header(1), &response), bytes.concat());

    let topics = [TopicData {
        name: "b",
        partitions: vec![FetchPartition::default()],
    }];
    let written = fetch_response(&header(1), &topics, |_, _, out| {
        out.extend(b"xyz");
        (code::OFFSET_OUT_OF_RANGE, 2)
    });
    let bytes = [
        &[0, 0, 0, 40, 0, 0, 0, 7, 0, 0, 0, 0][..],
        &[0, 0, 0, 1, 0, 1, b'b', 0, 0, 0, 1, 0, 0, 0, 0],
        &[0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 3, b'x', b'y', b'z'],
    ];
    assert_eq!(written, bytes.concat());
}

#[test]
fn a_produce_response_grows_with_its_version() {
    let response = ProduceResponse {
        topics: vec![TopicData {
            name: "b",
            partitions: vec![ProducedPartition {
                base_offset: 5,
                log_append_time_ms: -1,
                ..ProducedPartition::default()
            }],
        }],
        throttle_time_ms: 0,
    };
    let start = [&[0, 0, 0, 1, 0, 1, b'b', 0, 0, 0, 1][..], &[0; 13], &[5]].concat();
    for (version, end) in [
        (0, &[][..]),
        (1, &[0; 4]),
        (2, &[255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0]),
    ] {
        let written = write_response(&header(version), &response);
        assert_eq!(written[8..], [&start, end].concat());
    }
}

/// As Kafka 3.9.1 answers with an error.
#[test]
fn records_that_are_null_are_read_as_empty() {
    let mut response = [
        &[0, 0, 0, 7, 0, 0, 0, 1, 0, 1, b'b', 0, 0, 0, 1, 0, 0, 0, 0][..],
        &[0, 76],
        &[255; 12],
    ]
    .concat();
    let header = Header {
        correlation_id: 7,
        ..header(0)
    };
    let read = read_response::<FetchResponse>(&header, &mut response).unwrap();
    let partition = &read.topics[0].partitions[0];
    assert_eq!(partition.error_code, code::UNSUPPORTED_COMPRESSION_TYPE);
    assert!(partition.records.is_empty());
}
