//! Stable names: one word per variant, the same in JSON, in Python and in the list of all of them.

/// Gives each enum `name`, `NAMES` and its form in JSON, all out of what strum derived from it.
macro_rules! stable_names {
    ($($name:ident),+ $(,)?) => {
        $(
            impl $name {
                /// The stable names of all variants, in the order of their declaration.
                pub const NAMES: &'static [&'static str] =
                    <Self as strum::VariantNames>::VARIANTS;

                /// Returns its stable name.
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
