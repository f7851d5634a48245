//! The types that all messages are made of, and how a list of fields becomes a message.
//!
//! A length or a count on the wire allocates nothing: strings and record sets are slices of the
//! message, and arrays grow as their elements are read, up to a limit for all of them together.

/// Bytes that are not a message in a version spoken here.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unreadable;

pub(crate) type Result<T> = std::result::Result<T, Unreadable>;

/// What can be read from a message of one version, and written to one.
pub(crate) trait Wire<'a>: Sized {
    /// Takes a value off the front of a message.
    fn read(r: &mut Reader<'a>) -> Result<Self>;

    /// Appends the value to a message.
    fn write(&self, w: &mut Writer);
}

/// The rest of a message, and the version that it is written in.
pub(crate) struct Reader<'a> {
    pub(super) bytes: &'a mut [u8],
    pub(super) version: i16,
    /// How many elements all arrays together may still have.
    pub(super) elements: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a mut [u8], version: i16) -> Reader<'a> {
        Reader {
            bytes,
            version,
            elements: usize::MAX,
        }
    }

    pub(crate) fn take(&mut self, size: impl TryInto<usize>) -> Result<&'a mut [u8]> {
        let size = size.try_into().map_err(|_| Unreadable)?;
        self.bytes.split_off_mut(..size).ok_or(Unreadable)
    }
}

/// The start of a message, and the version to write it in.
#[derive(Default)]
pub(crate) struct Writer {
    pub(crate) bytes: Vec<u8>,
    pub(super) version: i16,
}

impl Writer {
    pub(super) fn new(version: i16) -> Writer {
        // The size is known at the end.
        let bytes = vec![0; 4];
        Writer { bytes, version }
    }

    /// The whole frame, with its size.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let size = self.bytes.len() as i32 - 4;
        self.bytes[..4].copy_from_slice(&size.to_be_bytes());
        self.bytes
    }
}

macro_rules! integers {
    ($($integer:ty)*) => { $(
        impl<'a> Wire<'a> for $integer {
            fn read(r: &mut Reader<'a>) -> Result<Self> {
                let bytes = r.take(size_of::<$integer>())?;
                let bytes = (&*bytes).try_into().map_err(|_| Unreadable)?;
                Ok(<$integer>::from_be_bytes(bytes))
            }

            fn write(&self, w: &mut Writer) {
                w.bytes.extend_from_slice(&self.to_be_bytes());
            }
        }
    )* };
}

integers!(i8 i16 i32 i64 u32);

/// `NULLABLE_STRING`: `None` is a size of -1.
impl<'a> Wire<'a> for Option<&'a str> {
    fn read(r: &mut Reader<'a>) -> Result<Self> {
        match i16::read(r)? {
            -1 => Ok(None),
            size => match str::from_utf8(r.take(size)?) {
                Ok(text) => Ok(Some(text)),
                Err(_) => Err(Unreadable),
            },
        }
    }

    fn write(&self, w: &mut Writer) {
        match self {
            None => (-1i16).write(w),
            Some(text) => text.write(w),
        }
    }
}

/// `STRING`. Texts to write come from requests, or are as short as if they did.
impl<'a> Wire<'a> for &'a str {
    fn read(r: &mut Reader<'a>) -> Result<Self> {
        Option::read(r)?.ok_or(Unreadable)
    }

    fn write(&self, w: &mut Writer) {
        (self.len() as i16).write(w);
        w.bytes.extend_from_slice(self.as_bytes());
    }
}

/// `STRING`, for texts that outlive no request.
impl<'a> Wire<'a> for String {
    fn read(r: &mut Reader<'a>) -> Result<Self> {
        <&str>::read(r).map(str::to_string)
    }

    fn write(&self, w: &mut Writer) {
        self.as_str().write(w);
    }
}

/// `RECORDS`: a message set, which can be changed in place.
impl<'a> Wire<'a> for &'a mut [u8] {
    fn read(r: &mut Reader<'a>) -> Result<Self> {
        let size = match i32::read(r)? {
            // Null, which is read as empty.
            -1 => 0,
            size => size,
        };
        r.take(size)
    }

    fn write(&self, w: &mut Writer) {
        (self.len() as i32).write(w);
        w.bytes.extend_from_slice(self);
    }
}

/// A nullable `ARRAY`: `None` is a count of -1.
///
/// It grows as its elements are read. No element is read from zero bytes, so that the array stays
/// in proportion to the message, whatever its count says.
impl<'a, T: Wire<'a>> Wire<'a> for Option<Vec<T>> {
    fn read(r: &mut Reader<'a>) -> Result<Self> {
        match i32::read(r)? {
            -1 => Ok(None),
            ..0 => Err(Unreadable),
            count => {
                let elements: Result<_> = (0..count)
                    .map(|_| {
                        r.elements = r.elements.checked_sub(1).ok_or(Unreadable)?;
                        T::read(r)
                    })
                    .collect();
                elements.map(Some)
            }
        }
    }

    fn write(&self, w: &mut Writer) {
        match self {
            None => (-1i32).write(w),
            Some(elements) => elements.write(w),
        }
    }
}

/// `ARRAY`.
impl<'a, T: Wire<'a>> Wire<'a> for Vec<T> {
    fn read(r: &mut Reader<'a>) -> Result<Self> {
        Option::read(r)?.ok_or(Unreadable)
    }

    fn write(&self, w: &mut Writer) {
        (self.len() as i32).write(w);
        self.iter().for_each(|element| element.write(w));
    }
}

/// Declares messages and their parts: the fields of the specification, in their order.
///
/// A field with `where version …` exists in those versions only. In the others it is not written,
/// and its default value is read.
macro_rules! messages {
    ($(
        $(#[$attribute:meta])*
        $name:ident $(<$life:lifetime $(, $part:ident)?>)? {
            $(
                $(#[$field_attribute:meta])*
                $field:ident: $type:ty $(where version $is:tt $version:literal)?,
            )*
        }
    )*) => { $(
        $(#[$attribute])*
        #[derive(Debug, Default, PartialEq, Eq)]
        pub(crate) struct $name $(<$life $(, $part)?>)? {
            $( $(#[$field_attribute])* pub(crate) $field: $type, )*
        }

        impl<'a $($(, $part: Wire<'a>)?)?> Wire<'a> for $name $(<$life $(, $part)?>)? {
            #[allow(unused_variables)]
            fn read(r: &mut Reader<'a>) -> Result<Self> {
                Ok($name { $(
                    $field: match true $(&& r.version $is $version)? {
                        true => Wire::read(r)?,
                        false => Default::default(),
                    },
                )* })
            }

            #[allow(unused_variables)]
            fn write(&self, w: &mut Writer) {
                $( if true $(&& w.version $is $version)? {
                    self.$field.write(w);
                } )*
            }
        }

        #[cfg(test)]
        impl<'a $($(, $part: $crate::wire::tests::Any<'a>)?)?> $crate::wire::tests::Any<'a>
            for $name $(<$life $(, $part)?>)?
        {
            #[allow(unused_variables)]
            fn any(source: &mut $crate::wire::tests::Source<'a>) -> Self {
                $name { $(
                    $field: match true $(&& source.version $is $version)? {
                        true => $crate::wire::tests::Any::any(source),
                        false => Default::default(),
                    },
                )* }
            }
        }
    )* };
}
pub(super) use messages;
