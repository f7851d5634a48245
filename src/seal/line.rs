//! The bytes of a sealed line.

use base64ct::{Base64UrlUnpadded, Encoding};
use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{Tag, XNonce};

use super::keys::ID_BYTES;
use super::{Keys, Secret, no_random_bytes};
use crate::client::MAX_RECORD_BYTES;
use crate::error::{Error, Result};
use crate::name::Name;

/// What every sealed value begins with; base64url follows.
const PREFIX: &[u8] = b"sealed1:";

const NONCE_BYTES: usize = 24;
/// How many nonces are drawn at once: a system call for each was a tenth of the time that a line took.
const NONCES: usize = 64;
const TAG_BYTES: usize = 16;
const SESSION_BYTES: usize = 16;
/// What stands before the text: session, number and clock.
const HEAD_BYTES: usize = SESSION_BYTES + 8 + 8;
/// What a line has beside its text, before base64url.
const EXTRA_BYTES: usize = ID_BYTES + NONCE_BYTES + HEAD_BYTES + TAG_BYTES;

/// The longest sender of a sealed line: a name's length.
const MOST_SENDER_BYTES: usize = 249;

/// Whether a value says that it is sealed.
pub fn is_sealed(value: &[u8]) -> bool {
    value.starts_with(PREFIX)
}

/// The most bytes that a line of `sender` can have, so that it fits in a record once it is sealed.
pub fn most_text(sender: &Name) -> usize {
    let value = MAX_RECORD_BYTES - sender.as_bytes().len();
    (value - PREFIX.len()) * 3 / 4 - EXTRA_BYTES
}

type Nonce = [u8; NONCE_BYTES];

/// One start of a sender's program.
pub(super) type Session = [u8; SESSION_BYTES];

/// A line that was sealed with our secret, for its topic, under its sender's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    pub(super) session: Session,
    pub(super) number: u64,
    /// When its sender sealed it, by the sender's clock: in milliseconds since 1970.
    pub clock: i64,
    /// The value's bytes without the tag, of which the sealed ones are opened in place.
    bytes: Vec<u8>,
}

impl Opened {
    /// The line itself.
    pub fn text(&self) -> &[u8] {
        &self.bytes[ID_BYTES + NONCE_BYTES + HEAD_BYTES..]
    }
}

/// Why a value is not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It does not say that it is sealed.
    NotSealed,
    /// It names other keys.
    OtherSecret,
    /// It is not canonical, or was changed, or was sealed for another topic or sender.
    Forged,
}

/// Seals the lines of one program's start, in their order.
pub struct Sealer {
    keys: Keys,
    associated_data: Vec<u8>,
    session: Session,
    /// The number of the next line.
    next: u64,
    /// Random, for the next lines.
    nonces: Vec<Nonce>,
    most_text: usize,
    buffers: Buffers,
}

impl Sealer {
    /// For lines of `sender` in `topic`.
    pub fn new(secret: &Secret, sender: &Name, topic: &Name) -> Result<Sealer> {
        let keys = Keys::new(secret, topic)?;
        let mut session = Session::default();
        getrandom::fill(&mut session).map_err(no_random_bytes)?;
        let mut associated_data = Vec::new();
        keys.associated_data(sender.as_bytes(), &mut associated_data);
        Ok(Sealer {
            associated_data,
            keys,
            session,
            next: 0,
            nonces: Vec::new(),
            most_text: most_text(sender),
            buffers: Buffers::default(),
        })
    }

    /// The most bytes that a line can have.
    pub fn most_text(&self) -> usize {
        self.most_text
    }

    /// Seals the next line. Each call uses up a number, so a line that is sent again is not sealed again.
    pub fn seal(&mut self, clock: i64, text: &[u8]) -> Result<&[u8]> {
        let nonce = self.nonce()?;
        let head = head(&self.session, self.next, clock);
        self.next += 1;
        let buffers = &mut self.buffers;
        buffers.seal(&self.keys, &self.associated_data, &nonce, &head, text)
    }

    fn nonce(&mut self) -> Result<Nonce> {
        if let Some(nonce) = self.nonces.pop() {
            return Ok(nonce);
        }
        let mut random = [Nonce::default(); NONCES];
        getrandom::fill(random.as_flattened_mut()).map_err(no_random_bytes)?;
        let [first, rest @ ..] = random;
        self.nonces.extend(rest);
        Ok(first)
    }
}

/// What stands before the text.
fn head(session: &Session, number: u64, clock: i64) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[..SESSION_BYTES].copy_from_slice(session);
    head[SESSION_BYTES..][..8].copy_from_slice(&number.to_be_bytes());
    head[SESSION_BYTES + 8..].copy_from_slice(&clock.to_be_bytes());
    head
}

/// What a line is sealed in, line after line: its bytes, and then its value.
#[derive(Default)]
struct Buffers {
    bytes: Vec<u8>,
    value: Vec<u8>,
}

impl Buffers {
    fn seal(
        &mut self,
        keys: &Keys,
        associated_data: &[u8],
        nonce: &Nonce,
        head: &[u8; HEAD_BYTES],
        text: &[u8],
    ) -> Result<&[u8]> {
        let Buffers { bytes, value } = self;
        bytes.clear();
        for part in [&keys.id[..], nonce, head, text] {
            bytes.extend_from_slice(part);
        }
        let plain = &mut bytes[ID_BYTES + NONCE_BYTES..];
        // It fails only for more than 256 GiB.
        let tag = keys
            .cipher
            .encrypt_inout_detached(&XNonce::from(*nonce), associated_data, plain.into())
            .map_err(|why| Error::failed("cannot seal a line", why))?;
        bytes.extend_from_slice(&tag);
        value.resize(PREFIX.len() + Base64UrlUnpadded::encoded_len(bytes), 0);
        let (prefix, encoded) = value.split_at_mut(PREFIX.len());
        prefix.copy_from_slice(PREFIX);
        Base64UrlUnpadded::encode(bytes, encoded)
            .map_err(|why| Error::failed("cannot seal a line", why))?;
        Ok(value)
    }
}

/// Opens the value of a record with this key. `data` is a buffer.
pub(super) fn open(
    keys: &Keys,
    sender: &[u8],
    value: &[u8],
    data: &mut Vec<u8>,
) -> Result<Opened, Refusal> {
    let encoded = value.strip_prefix(PREFIX).ok_or(Refusal::NotSealed)?;
    let mut bytes = vec![0; encoded.len() * 3 / 4];
    let decoded = Base64UrlUnpadded::decode(encoded, &mut bytes).map_err(|_| Refusal::Forged)?;
    let length = decoded.len();
    bytes.truncate(length);
    let (id, rest) = bytes.split_first_chunk_mut().ok_or(Refusal::Forged)?;
    if *id != keys.id {
        return Err(Refusal::OtherSecret);
    }
    let (nonce, rest) = rest.split_first_chunk_mut().ok_or(Refusal::Forged)?;
    let (plain, tag) = rest.split_last_chunk_mut().ok_or(Refusal::Forged)?;
    if sender.len() > MOST_SENDER_BYTES {
        return Err(Refusal::Forged);
    }
    let nonce: &Nonce = nonce;
    let tag: &[u8; TAG_BYTES] = tag;
    keys.cipher
        .decrypt_inout_detached(
            &XNonce::from(*nonce),
            keys.associated_data(sender, data),
            (&mut *plain).into(),
            &Tag::from(*tag),
        )
        .map_err(|_| Refusal::Forged)?;
    let (session, rest) = plain.split_first_chunk().ok_or(Refusal::Forged)?;
    let (number, rest) = rest.split_first_chunk().ok_or(Refusal::Forged)?;
    let clock = rest.first_chunk().ok_or(Refusal::Forged)?;
    let (session, number, clock) = (*session, *number, *clock);
    bytes.truncate(length - TAG_BYTES);
    Ok(Opened {
        session,
        number: u64::from_be_bytes(number),
        clock: i64::from_be_bytes(clock),
        bytes,
    })
}

/// A line whose text is its session's first byte and its number.
#[cfg(test)]
pub(super) fn for_test(keys: &Keys, sender: &str, session: Session, number: u64) -> Vec<u8> {
    let text = format!("{}:{number}", session[0]);
    let nonce = [0; NONCE_BYTES];
    tests::seal(
        keys,
        sender,
        &nonce,
        &head(&session, number, 0),
        text.as_bytes(),
    )
}

#[cfg(test)]
pub(super) mod tests {
    use chacha20poly1305::{KeyInit, XChaCha20Poly1305};
    use proptest::prelude::*;

    use super::*;

    pub(in super::super) fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The secret of the test vectors in docs/sealed.md.
    pub(in super::super) fn secret() -> Secret {
        Secret::of(b"a secret for test vectors\n".to_vec().into()).unwrap()
    }

    pub(in super::super) fn seal(
        keys: &Keys,
        sender: &str,
        nonce: &Nonce,
        head: &[u8; HEAD_BYTES],
        text: &[u8],
    ) -> Vec<u8> {
        let mut data = Vec::new();
        let data = keys.associated_data(sender.as_bytes(), &mut data);
        let mut buffers = Buffers::default();
        buffers
            .seal(keys, data, nonce, head, text)
            .unwrap()
            .to_vec()
    }

    fn open(keys: &Keys, sender: &[u8], value: &[u8]) -> Result<Opened, Refusal> {
        super::open(keys, sender, value, &mut Vec::new())
    }

    fn keys() -> Keys {
        Keys::new(&secret(), &"bob".parse().unwrap()).unwrap()
    }

    /// draft-irtf-cfrg-xchacha-03, appendix A.3.1.
    #[test]
    fn xchacha20_poly1305_is_that_of_the_draft() {
        let key: Vec<u8> = (0x80..0xa0).collect();
        let nonce: Vec<u8> = (0x40..0x58).collect();
        let nonce: [u8; 24] = nonce.try_into().unwrap();
        let data = b"\x50\x51\x52\x53\xc0\xc1\xc2\xc3\xc4\xc5\xc6\xc7";
        let mut text =
            b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for \
            the future, sunscreen would be it."
                .to_vec();
        let cipher = XChaCha20Poly1305::new_from_slice(&key).unwrap();
        let tag = cipher
            .encrypt_inout_detached(&XNonce::from(nonce), data, text.as_mut_slice().into())
            .unwrap();
        let sealed = "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb731c7f1b0b4aa644\
            0bf3a82f4eda7e39ae64c6708c54c216cb96b72e1213b4522f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369\
            488f76b2383565d3fff921f9664c97637da9768812f615c68b13b52e";
        assert_eq!(hex(&text), sealed);
        assert_eq!(hex(&tag), "c0875924c1c7987947deafd8780acf49");
    }

    /// The vectors in docs/sealed.md.
    pub(in super::super) const VECTORS: &[(&str, u64, i64, &str, &str)] = &[
        (
            "alice",
            0,
            1_795_872_131_007,
            "xin chào",
            "sealed1:yAmIZ6tcyY0HMqZSdVZXMSIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIidExRDvNSDdu_iNbsoeIZBCCO9VG2jWJCpGsHOrC0CKqBeTHZ_6icm1hXkQeUdfKFpBOWtagAlZQQ",
        ),
        (
            "alice",
            1,
            1_795_872_131_008,
            "",
            "sealed1:yAmIZ6tcyY0HMqZSdVZXMSIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIidExRDvNSDdu_iNbsoeIZBCCO9VG2jWJSpGsHOrC0D1MIwB81OYJzLzHqDlfNQ_iw",
        ),
        (
            "",
            u64::MAX,
            -1,
            "no name",
            "sealed1:yAmIZ6tcyY0HMqZSdVZXMSIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIidExRDvNSDdu_iNbsoeIZC99xCq5Jcp29W5Ti52prjKvhHdU53_L-R_K1fb78tijxs2rpd0KLM",
        ),
    ];

    #[test]
    fn the_vectors_of_the_format_hold() {
        let keys = keys();
        assert_eq!(hex(&keys.id), "c8098867ab5cc98d0732a65275565731");
        for (sender, number, clock, text, value) in VECTORS {
            let head = head(&[0x11; 16], *number, *clock);
            let sealed = seal(&keys, sender, &[0x22; 24], &head, text.as_bytes());
            assert_eq!(sealed, value.as_bytes());
            let opened = open(&keys, sender.as_bytes(), value.as_bytes()).unwrap();
            assert_eq!((opened.session, opened.number), ([0x11; 16], *number));
            assert_eq!((opened.clock, opened.text()), (*clock, text.as_bytes()));
        }
    }

    #[test]
    fn lines_are_numbered_from_0_in_a_session_of_their_own() {
        let (alice, bob) = ("alice".parse().unwrap(), "bob".parse().unwrap());
        let mut sealers = [(); 2].map(|()| Sealer::new(&secret(), &alice, &bob).unwrap());
        let keys = keys();
        let mut sessions = Vec::new();
        for number in 0..3 {
            for sealer in &mut sealers {
                let value = sealer.seal(-5, b"same").unwrap();
                let opened = open(&keys, b"alice", value).unwrap();
                assert_eq!((opened.number, opened.clock), (number, -5));
                sessions.push(opened.session);
            }
        }
        assert_eq!(sessions[0], sessions[2]);
        assert_ne!(sessions[0], sessions[1]);
    }

    #[test]
    fn the_longest_line_fits_in_a_record_and_one_byte_more_does_not() {
        let alice: Name = "alice".parse().unwrap();
        let mut sealer = Sealer::new(&secret(), &alice, &"bob".parse().unwrap()).unwrap();
        let mut size = |text| 5 + sealer.seal(0, &vec![b'x'; text]).unwrap().len();
        assert!(size(most_text(&alice)) <= MAX_RECORD_BYTES);
        assert!(size(most_text(&alice) + 1) > MAX_RECORD_BYTES);
    }

    #[test]
    fn each_change_of_one_bit_or_of_the_length_is_refused() {
        let keys = keys();
        let sealed = |text: &[u8]| seal(&keys, "alice", &[7; 24], &[1; HEAD_BYTES], text);
        // Of every length modulo 3, so that the last symbol has every number of spare bits.
        for text in ["", "x", "hello"] {
            let value = sealed(text.as_bytes());
            assert!(open(&keys, b"alice", &value).is_ok());
            for bit in 0..value.len() * 8 {
                let mut changed = value.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                let refusal = open(&keys, b"alice", &changed).unwrap_err();
                let expected = match bit / 8 {
                    0..8 => Refusal::NotSealed,
                    // Symbols of the key's id; other bytes are no symbols.
                    8..29 => match refusal {
                        Refusal::OtherSecret => Refusal::OtherSecret,
                        _ => Refusal::Forged,
                    },
                    _ => match refusal {
                        // The last symbol of the id has bits of the nonce, too.
                        Refusal::OtherSecret if bit / 8 == 29 => Refusal::OtherSecret,
                        _ => Refusal::Forged,
                    },
                };
                assert_eq!(refusal, expected, "bit {bit}");
            }
            for length in 8..value.len() {
                let refusal = open(&keys, b"alice", &value[..length]).unwrap_err();
                assert_eq!(refusal, Refusal::Forged, "{length} bytes");
            }
            for more in ["A", "AA", "AAA", "AAAA", "=", "==", "\n", " ", "\0"] {
                let longer = [&value, more.as_bytes()].concat();
                assert_eq!(
                    open(&keys, b"alice", &longer),
                    Err(Refusal::Forged),
                    "{more:?}"
                );
            }
        }
    }

    #[test]
    fn a_line_opens_only_with_its_secret_in_its_topic_and_under_its_sender() {
        let keys = keys();
        let mut sealer = Sealer::new(
            &secret(),
            &"alice".parse().unwrap(),
            &"bob".parse().unwrap(),
        )
        .unwrap();
        let value = sealer.seal(0, b"hi").unwrap();
        assert_eq!(open(&keys, b"alice", value).unwrap().text(), b"hi");
        for sender in [&b"carol"[..], b"", b"alice\0", b"alice\0bob", &[b'a'; 300]] {
            assert_eq!(open(&keys, sender, value), Err(Refusal::Forged));
        }
        // The other direction: other keys, and so an unknown id.
        let back = Keys::new(&secret(), &"alice".parse().unwrap()).unwrap();
        assert_eq!(open(&back, b"alice", value), Err(Refusal::OtherSecret));
        assert_eq!(open(&keys, b"alice", b"hi"), Err(Refusal::NotSealed));
        assert_eq!(open(&keys, b"alice", b""), Err(Refusal::NotSealed));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_line_comes_back(text: Vec<u8>, number: u64, clock: i64, sender in "[a-z]{0,20}") {
            let keys = Keys::for_test("bob");
            let value = seal(&keys, &sender, &[5; 24], &head(&[3; 16], number, clock), &text);
            let opened = open(&keys, sender.as_bytes(), &value).unwrap();
            prop_assert_eq!(opened.text(), &text);
            prop_assert_eq!((opened.number, opened.clock), (number, clock));
        }

        #[test]
        fn any_other_value_is_refused(junk: Vec<u8>) {
            let keys = Keys::for_test("bob");
            let value = [PREFIX, &junk].concat();
            prop_assert!(open(&keys, b"alice", &value).is_err());
            prop_assert!(open(&keys, b"alice", &junk).is_err());
        }
    }
}
