// What operators look for, on both databases, page by page.

package registration_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/server/registration"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
)

func TestSearch(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		i := installation.New(t, db)
		ctx := context.Background()
		var serial string
		for _, id := range []string{"SN-1", "SN-10", "sn_x", "SNX", "T%1"} {
			if strings.Contains(id, "%") {
				continue // no id; the search for it must find nothing all the same
			}
			serial = i.EnrollByCode(t, id, installation.Key(t)).Serial
		}
		if _, err := i.Book.SuspendDevice(ctx, "test", "SNX"); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			f    registration.Filter
			want string
		}{
			{registration.Filter{}, "SN-1 SN-10 SNX sn_x"}, {registration.Filter{Prefix: "SN"}, "SN-1 SN-10 SNX"}, {registration.Filter{Prefix: "SN-"}, "SN-1 SN-10"},
			{registration.Filter{Prefix: "SN-", After: "SN-1"}, "SN-10"}, {registration.Filter{Prefix: "SN", Limit: 1}, "SN-1"}, {registration.Filter{Prefix: "sn"}, "sn_x"},
			{registration.Filter{Part: "n-1"}, "SN-1 SN-10"}, {registration.Filter{Part: "_"}, "sn_x"}, {registration.Filter{Part: "%"}, ""}, {registration.Filter{Part: "!"}, ""},
			{registration.Filter{Suspended: true}, "SNX"}, {registration.Filter{Prefix: "SN", Label: "bridge"}, ""},
		} {
			list, err := i.Book.Devices(ctx, c.f)
			var got []string
			for _, e := range list {
				got = append(got, e.ID)
			}
			if err != nil || strings.Join(got, " ") != c.want {
				t.Errorf("%+v: %v, %v; want %s", c.f, got, err, c.want)
			}
		}
		search := func(f ca.Filter) (devices []string) {
			t.Helper()
			list, err := i.CA.Certificates(ctx, f)
			if err != nil {
				t.Errorf("%+v: %v", f, err)
			}
			for _, c := range list {
				devices = append(devices, c.Device)
			}
			return devices
		}
		if got := search(ca.Filter{DevicePrefix: "SN", Limit: 2}); !slices.Equal(got, []string{"SN-1", "SN-10"}) {
			t.Errorf("by the beginning of the id: %v", got)
		}
		second, err := i.CA.Certificates(ctx, ca.Filter{Device: "SN-10"})
		if err != nil {
			t.Fatal(err)
		}
		if got := search(ca.Filter{DevicePrefix: "SN", After: second[0].Serial}); !slices.Equal(got, []string{"SNX"}) {
			t.Errorf("the next page: %v", got)
		}
		if got := search(ca.Filter{Serial: strings.ToUpper(serial[:12])}); len(got) != 1 {
			t.Errorf("by the beginning of the serial number: %v", got)
		}
		if got := search(ca.Filter{Issuer: "devices", Label: registration.Default}); len(got) != 4 {
			t.Errorf("by issuer and label: %v", got)
		}
		if got := search(ca.Filter{Issuer: "root", Label: registration.Default}); len(got) != 0 {
			t.Errorf("of the root: %v", got)
		}
		if _, err := i.CA.Certificates(ctx, ca.Filter{Serial: "xyz"}); err == nil {
			t.Error("a serial number that is none")
		}
		if got := search(ca.Filter{Expired: true}); len(got) != 0 {
			t.Errorf("expired already: %v", got)
		}
		i.Clock.Advance(400 * 24 * time.Hour)
		if got := search(ca.Filter{Expired: true, DevicePrefix: "SN-"}); len(got) != 2 {
			t.Errorf("expired: %v", got)
		}
	})
}
