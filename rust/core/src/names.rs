//! Stable names: one word per variant, the same in JSON, in Python and in the list of all names.

/// Gives each enum `name`, `NAMES` and its JSON form. strum derives the names from the variants.
macro_rules! stable_names {
    ($($name:ident),+ $(,)?) => {
        $(
            impl $name {
                /// The stable names of all variants, in declaration order.
                pub const NAMES: &'static [&'static str] =
                    <Self as strum::VariantNames>::VARIANTS;

                /// Returns the stable name.
                #[must_use]
                pub fn name(self) -> &'static str {
                    self.into()
                }
            }

            impl serde::Serialize for $name {
                fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                    serializer.serialize_str(self.name())
                }
            }
        )+
    };
}

pub(crate) use stable_names;
