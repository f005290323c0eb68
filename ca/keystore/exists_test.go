package keystore

import (
	"testing"
	"time"
)

// Lists and pages say whether a key is there. While its token hangs they take the last answer, and do not wait for the next.
func TestExistsDoesNotWaitForATokenThatHangs(t *testing.T) {
	t.Parallel()
	const uri = "pkcs11:token=T;object=ca"
	s := New(t.TempDir(), nil)
	r := &remote{backend: &backend{library: &library{}}, uri: uri, checking: make(chan struct{}, 1)}
	r.checking <- struct{}{} // a look at the key that does not come back
	s.remotes[uri] = r
	for _, failure := range []error{nil, ErrNoAnswer} {
		r.failure, r.checked = failure, time.Now().Add(-2*checkedFor)
		begun := time.Now()
		if got := s.Exists(uri); got != (failure == nil) || time.Since(begun) > checkLimit/2 {
			t.Errorf("%v: %v, after %v", failure, got, time.Since(begun))
		}
	}
	r.failure, r.checked = nil, time.Now().Add(-2*watchedFor) // nobody watches it
	if s.Exists(uri) {
		t.Error("an answer of two minutes ago is relied on")
	}
}
