package bridge

import (
	"slices"
	"testing"

	"github.com/natal-pki/natal/test/testpki"
)

// A new root is in without an operator when one that is trusted has certified its name and key, and only then.
func TestANewRootThatTheOldOneVouchesFor(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		cross func(o *offer, old, next *testpki.Authority) *testpki.Authority
		code  string
	}{
		"new with old": {func(_ *offer, old, next *testpki.Authority) *testpki.Authority {
			return old.Intermediate(t, "Root 2", testpki.WithKey(next.Key))
		}, ""},
		"nothing": {func(*offer, *testpki.Authority, *testpki.Authority) *testpki.Authority { return nil }, CodeAnchorAdded},
		"old with new": {func(_ *offer, old, next *testpki.Authority) *testpki.Authority {
			return next.Intermediate(t, "Root", testpki.WithKey(old.Key))
		}, CodeAnchorAdded},
		"another name": {func(_ *offer, old, next *testpki.Authority) *testpki.Authority {
			return old.Intermediate(t, "Root 3", testpki.WithKey(next.Key))
		}, CodeAnchorAdded},
		"another key": {func(_ *offer, old, _ *testpki.Authority) *testpki.Authority { return old.Intermediate(t, "Root 2") }, CodeAnchorAdded},
		"a stranger": {func(_ *offer, _, next *testpki.Authority) *testpki.Authority {
			return testpki.Root(t, "Root").Intermediate(t, "Root 2", testpki.WithKey(next.Key))
		}, CodeAnchorAdded},
		"new with old, has ended": {func(_ *offer, old, next *testpki.Authority) *testpki.Authority {
			return old.Intermediate(t, "Root 2", testpki.WithKey(next.Key), testpki.Expired())
		}, CodeAnchorAdded},
		"the certificate of an issuing CA": {func(_ *offer, old, next *testpki.Authority) *testpki.Authority {
			return old.Intermediate(t, "Root 2", testpki.WithKey(next.Key), testpki.PathLen(0))
		}, CodeAnchorAdded},
		"an issuing CA, not a root": {func(o *offer, _, next *testpki.Authority) *testpki.Authority {
			return o.devices.Intermediate(t, "Root 2", testpki.WithKey(next.Key))
		}, CodeAnchorAdded},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOffer(t)
			last := o.whole(nil)
			next := testpki.Root(t, "Root 2")
			o.set.Seq++
			o.set.Anchors = append(o.set.Anchors, string(next.PEM()))
			if cross := tt.cross(o, o.root, next); cross != nil {
				o.set.Crosses = []string{string(cross.PEM())}
			}
			set, refusals := o.validate(last)
			if set == nil || slices.ContainsFunc(set.Anchors, next.Certificate.Equal) != (tt.code == "") {
				t.Fatalf("the new root is in: %t, refused: %v", tt.code != "", refusals)
			}
			if tt.code == "" && len(refusals) > 0 || tt.code != "" && !slices.Contains(codesOf(refusals), tt.code) {
				t.Errorf("refused: %v, want %q", refusals, tt.code)
			}
			if tt.code == "" && !slices.Contains(set.Mark().holds(), fingerprint(next.Certificate.Raw)) {
				t.Error("the acknowledgement would not name the new root")
			}
		})
	}
}
