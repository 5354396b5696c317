//! Words of operators and workloads that stand in lists, in logs and in what others are told, and so
//! are printable ASCII of a bounded length.

/// Makes such a type, with its error.
macro_rules! printable {
    (
        $(#[$doc:meta])* $name:ident,
        $(#[$error_doc:meta])* $error:ident, $most:expr, $what:literal
    ) => {
        $(#[$error_doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
        #[error("{} has 1 to {} bytes of printable ASCII", $what, $most)]
        pub struct $error;

        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize)]
        #[serde(transparent)]
        pub struct $name(Box<str>);

        impl $name {
            /// Takes the text as it is; two that differ in anything are two.
            ///
            /// # Errors
            /// When it is empty, too long, or holds anything else than printable ASCII.
            pub fn parse(text: &str) -> Result<Self, $error> {
                let is_plain = text.bytes().all(|b| matches!(b, b' '..=b'~'));
                match (1..=$most).contains(&text.len()) && is_plain {
                    true => Ok(Self(text.into())),
                    false => Err($error),
                }
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<str>::deserialize(from)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

pub(super) use printable;
