//! A value that is exchanged while it is in use.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

/// A value that many read and somebody exchanges now and then. Cloning is cheap: all clones are the same place.
pub struct Current<T>(Arc<RwLock<Arc<T>>>);

impl<T> Current<T> {
    /// The value of this moment. Who goes on with it is not touched by what comes after.
    pub fn get(&self) -> Arc<T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another value in its place, for whoever asks from now on.
    pub fn set(&self, value: impl Into<Arc<T>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = value.into();
    }
}

impl<T> From<T> for Current<T> {
    fn from(value: T) -> Current<T> {
        Current(Arc::new(RwLock::new(Arc::new(value))))
    }
}

impl<T> Clone for Current<T> {
    fn clone(&self) -> Current<T> {
        Current(self.0.clone())
    }
}

impl<T: fmt::Debug> fmt::Debug for Current<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_clones_are_one_place() {
        let current = Current::from(1);
        let (other, before) = (current.clone(), current.get());
        other.set(2);
        assert_eq!((*current.get(), *before), (2, 1));
    }
}
