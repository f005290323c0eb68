// Names that no request may choose for itself, whatever the profile lets it choose: those of the EST server, of other end entities, and of
// what the installation lives on (brokers, bridges). Whoever had one in his certificate could pass for them.

package registration

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	"github.com/natal-pki/natal/ca/profile"
)

// Reserved returns what tells whether a name ("dns:NAME", "ip:ADDRESS", ...) is somebody else's than device's. A name that cannot be looked up is.
func (b *Book) Reserved(ctx context.Context, device string) func(name string) bool {
	return func(name string) bool {
		kind, value, _ := strings.Cut(name, ":")
		if kind != "dns" && kind != "ip" {
			return false
		}
		value = strings.ToLower(strings.TrimPrefix(value, "*."))
		if b.serverIsCalled(ctx, value) {
			return true
		}
		var others int64
		err := b.db.Get(ctx, &others, "SELECT COUNT(*) FROM end_entities WHERE lower(id) = ? AND id <> ? AND state <> 'historical'", value, device)
		if err != nil || others > 0 {
			return true
		}
		known, err := b.installationIsCalled(ctx, kind+":"+value, device)
		return err != nil || known
	}
}

// serverIsCalled tells whether the EST server has this name. Every machine is called localhost.
func (b *Book) serverIsCalled(ctx context.Context, value string) bool {
	if address, err := netip.ParseAddr(value); b.serverNames == nil || value == "localhost" || err == nil && address.IsLoopback() {
		return false
	}
	return slices.ContainsFunc(b.serverNames(ctx), func(own string) bool { return strings.EqualFold(own, value) })
}

// installationIsCalled looks among the names that are registered at the labels of use management, which have few end entities.
func (b *Book) installationIsCalled(ctx context.Context, name, device string) (bool, error) {
	labels, err := b.Labels(ctx)
	if err != nil {
		return false, err
	}
	for _, l := range labels {
		p, err := b.ca.Profile(ctx, l.Profile)
		if err != nil || p.Use() != profile.UseManagement {
			continue
		}
		var known int64
		if err := b.db.Get(ctx, &known, "SELECT COUNT(*) FROM end_entities WHERE label = ? AND id <> ? AND sans LIKE ?", l.Name, device, `%"`+name+`"%`); err != nil || known > 0 {
			return true, err
		}
	}
	return false, nil
}
