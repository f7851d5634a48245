//! The keys of one topic, which follow from the secret and the topic's name.

use argon2::{Algorithm, Argon2, Block, Params, Version};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305};
use zeroize::{Zeroize, Zeroizing};

use super::{CONTEXT, Secret};
use crate::error::{Error, Result};
use crate::name::Name;

/// Argon2's memory in KiB, and its passes over it: OWASP's recommendation.
const MEMORY_KIB: u32 = 19_456;
const PASSES: u32 = 2;
const LANES: u32 = 1;

const KEY_BYTES: usize = 32;
/// How many bytes tell keys apart.
pub(super) const ID_BYTES: usize = 16;

/// What seals and opens the lines of one topic; overwritten when it is dropped.
pub(super) struct Keys {
    pub(super) cipher: XChaCha20Poly1305,
    pub(super) id: [u8; ID_BYTES],
    topic: Name,
}

impl Keys {
    /// Derives the keys, which takes 19 MiB and some milliseconds.
    pub(super) fn new(secret: &Secret, topic: &Name) -> Result<Keys> {
        let salt = [CONTEXT, topic.as_bytes()].concat();
        let mut derived = Zeroizing::new([0; KEY_BYTES + ID_BYTES]);
        derive(secret.as_bytes(), &salt, derived.as_mut())
            .map_err(|why| Error::failed("cannot derive keys from the secret", why))?;
        let (key, rest) = derived.split_at(KEY_BYTES);
        let mut id = [0; ID_BYTES];
        id.copy_from_slice(rest);
        let cipher = XChaCha20Poly1305::new_from_slice(key)
            .map_err(|why| Error::failed("cannot use the key", why))?;
        Ok(Keys {
            cipher,
            id,
            topic: topic.clone(),
        })
    }

    /// Keys that no secret has, at once.
    #[cfg(test)]
    pub(super) fn for_test(topic: &str) -> Keys {
        Keys {
            cipher: XChaCha20Poly1305::new(&[9; KEY_BYTES].into()),
            id: [8; ID_BYTES],
            topic: topic.parse().unwrap(),
        }
    }

    /// Writes into `data` what a sealed line is bound to beside its text. A topic's name has no NUL: so the two
    /// names can't run into each other.
    pub(super) fn associated_data<'a>(&self, sender: &[u8], data: &'a mut Vec<u8>) -> &'a [u8] {
        data.clear();
        for part in [CONTEXT, sender, b"\0", self.topic.as_bytes()] {
            data.extend_from_slice(part);
        }
        data
    }
}

/// The crate frees its own memory as it is, so it gets ours, which is overwritten.
fn derive(secret: &[u8], salt: &[u8], out: &mut [u8]) -> argon2::Result<()> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, Some(out.len()))?;
    let mut memory = vec![Block::default(); params.block_count()];
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let result = argon2.hash_password_into_with_memory(secret, salt, out, &mut memory);
    memory.iter_mut().for_each(Block::zeroize);
    result
}

#[cfg(test)]
mod tests {
    use argon2::{AssociatedData, ParamsBuilder};

    use super::super::line::tests::{hex, secret};
    use super::*;

    /// RFC 9106, section 5.3.
    #[test]
    fn argon2id_is_that_of_rfc_9106() {
        let params = ParamsBuilder::new()
            .m_cost(32)
            .t_cost(3)
            .p_cost(4)
            .data(AssociatedData::new(&[4; 12]).unwrap())
            .build()
            .unwrap();
        let argon2 = Argon2::new_with_secret(&[3; 8], Algorithm::Argon2id, Version::V0x13, params);
        let mut tag = [0; 32];
        let hashed = argon2
            .unwrap()
            .hash_password_into(&[1; 32], &[2; 16], &mut tag);
        hashed.unwrap();
        assert_eq!(
            hex(&tag),
            "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659"
        );
    }

    #[test]
    fn another_topic_or_another_secret_has_other_keys() {
        let id =
            |secret: &Secret, topic: &str| Keys::new(secret, &topic.parse().unwrap()).unwrap().id;
        let other = Secret::of(b"another secret of enough bytes".to_vec().into()).unwrap();
        let ids = [id(&secret(), "bob"), id(&secret(), "bo"), id(&other, "bob")];
        assert_eq!(ids[0], id(&secret(), "bob"));
        assert!(ids[0] != ids[1] && ids[0] != ids[2] && ids[1] != ids[2]);
    }
}
