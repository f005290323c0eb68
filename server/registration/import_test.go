// Imports: all or nothing, every bad line named, and a repeat that changes nothing.

package registration_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/server/registration"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
)

func row(line int, id string) registration.ImportRow {
	return registration.ImportRow{Line: line, ID: id, Label: registration.Default}
}

func devices(t *testing.T, i *installation.Installation) int {
	t.Helper()
	var n int
	if err := i.DB.Get(context.Background(), &n, "SELECT COUNT(*) FROM end_entities"); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestImport(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		i := installation.New(t, db)
		ctx := context.Background()
		i.EnrollByCode(t, "gone", installation.Key(t))
		if err := i.Book.RemoveDevice(ctx, "test", "gone"); err != nil {
			t.Fatal(err)
		}
		given, err := registration.MakeCode()
		if err != nil {
			t.Fatal(err)
		}
		rows := []registration.ImportRow{
			row(2, "SN-1"), {Line: 3, ID: "SN-2", Label: "default", Service: "pumps", SANs: []string{"dns:sn-2.example.com"}, Code: given, Expires: installation.Start.Add(48 * time.Hour)},
			{Line: 4, ID: "gone", Label: "default"}, {Line: 5, ID: "mqtt.example.com", Label: "bridge"},
		}
		if out, err := i.Book.Import(ctx, "test", rows, nil, true); err != nil || len(out.Codes) != 0 || devices(t, i) != 1 {
			t.Fatalf("check: %+v, %v, %d devices", out, err, devices(t, i))
		}
		out, err := i.Book.Import(ctx, "test", rows, nil, false)
		if err != nil || len(out.Codes) != len(rows) || devices(t, i) != 4 {
			t.Fatalf("%+v, %v", out, err)
		}
		if out.Codes[1].Code != "" || !out.Codes[1].Expires.Equal(installation.Start.Add(48*time.Hour)) || len(out.Codes[0].Code) != 26 {
			t.Errorf("codes: %+v", out.Codes)
		}
		if e, err := i.Book.Device(ctx, "SN-2"); err != nil || e.Service != "pumps" || !slices.Equal(e.SANs, []string{"dns:sn-2.example.com"}) || !inBroker(t, i, "SN-2") {
			t.Errorf("%+v, %v", e, err)
		}
		for id, code := range map[string]string{"SN-1": out.Codes[0].Code, "SN-2": given, "gone": out.Codes[2].Code} {
			if _, err := i.EnrollWith(id, code, installation.CSR(t, installation.Key(t), id, nil)); err != nil {
				t.Errorf("%s: %v", id, err)
			}
		}
	})
}

// The answer to an import was lost: the same rows with the same codes again are no duplicates, not even after some of them have enrolled.
func TestImportAgain(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	rows := []registration.ImportRow{row(2, "SN-1"), row(3, "SN-2")}
	for n := range rows {
		code, err := registration.MakeCode()
		if err != nil {
			t.Fatal(err)
		}
		rows[n].Code = code
	}
	if out, err := i.Book.Import(ctx, "test", rows, nil, false); err != nil || out.Repeated {
		t.Fatalf("%+v, %v", out, err)
	}
	if _, err := i.EnrollWith("SN-1", rows[0].Code, installation.CSR(t, installation.Key(t), "SN-1", nil)); err != nil {
		t.Fatal(err)
	}
	if out, err := i.Book.Import(ctx, "test", rows, nil, false); err != nil || !out.Repeated {
		t.Errorf("again: %+v, %v", out, err)
	}
	// One row more, or another code, is another import, and its old lines are duplicates.
	more := append(slices.Clone(rows), row(4, "SN-3"))
	wantLines(t, func() error { _, err := i.Book.Import(ctx, "test", more, nil, false); return err }(), "2 device_exists", "3 device_exists")
	other := slices.Clone(rows)
	other[1].Code, _ = registration.MakeCode()
	wantLines(t, func() error { _, err := i.Book.Import(ctx, "test", other, nil, false); return err }(), "2 device_exists", "3 device_exists")
	if devices(t, i) != 2 {
		t.Errorf("%d devices", devices(t, i))
	}
}

func wantLines(t *testing.T, err error, want ...string) {
	t.Helper()
	var bad *registration.ImportError
	if !errors.As(err, &bad) {
		t.Fatalf("%v, want an ImportError", err)
	}
	var got []string
	for _, line := range bad.Lines {
		got = append(got, fmt.Sprint(line.Line, " ", line.Rule))
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestEveryBadLineIsNamed(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		i := installation.New(t, db)
		ctx := context.Background()
		if _, err := i.Book.AddDevice(ctx, "test", registration.NewDevice{ID: "There", Label: registration.Default}); err != nil {
			t.Fatal(err)
		}
		code, err := registration.MakeCode()
		if err != nil {
			t.Fatal(err)
		}
		with := func(line int, id string, edit func(*registration.ImportRow)) registration.ImportRow {
			r := row(line, id)
			edit(&r)
			return r
		}
		rows := []registration.ImportRow{
			row(2, "good"), row(3, "a b"), row(4, "Natal-x"), row(5, "iotAgent"), row(6, "GOOD"), row(7, "There"), row(8, "there"), row(9, "a\nuser b"),
			with(10, "n1", func(r *registration.ImportRow) { r.Label = "nowhere" }), with(11, "n2", func(r *registration.ImportRow) { r.Label = "mqtt-server" }),
			with(12, "n3", func(r *registration.ImportRow) { r.SANs = []string{"email:x"} }), with(13, "n4", func(r *registration.ImportRow) { r.Code = "dojot" }),
			with(14, "n5", func(r *registration.ImportRow) { r.Code = code }), with(15, "n6", func(r *registration.ImportRow) { r.Code = code }),
			with(16, "n7", func(r *registration.ImportRow) { r.Expires = installation.Start.Add(-time.Hour) }),
			with(17, "n8", func(r *registration.ImportRow) { r.Expires = installation.Start.AddDate(20, 0, 0) }),
			with(18, "n9", func(r *registration.ImportRow) { r.Service = "#" }), row(19, "\xff\x00"), row(20, "not-this"),
		}
		allowed := func(r registration.ImportRow) error {
			if r.ID == "not-this" {
				return &registration.Error{Kind: registration.NotAuthorized, Reason: "administrator_only", Detail: "no"}
			}
			return nil
		}
		for _, check := range []bool{true, false} {
			_, err := i.Book.Import(ctx, "test", rows, allowed, check)
			wantLines(t, err, "3 device_id", "4 device_id_reserved", "5 device_id_reserved", "6 device_twice", "7 device_exists", "8 device_twice", "9 device_id", "10 unknown_label",
				"11 label_auth", "12 san", "13 code_weak", "15 code_shared", "16 code_life", "17 code_life", "18 service", "19 device_id", "20 administrator_only")
		}
		if devices(t, i) != 1 {
			t.Errorf("%d devices", devices(t, i))
		}
		many := make([]registration.ImportRow, 250)
		for n := range many {
			many[n] = row(n+2, "#")
		}
		var bad *registration.ImportError
		if _, err := i.Book.Import(ctx, "test", many, nil, false); !errors.As(err, &bad) || len(bad.Lines) != registration.MaxLineErrors || bad.More != 150 {
			t.Errorf("250 bad lines: %d named, %d more, %v", len(bad.Lines), bad.More, err)
		}
		for _, size := range []int{0, registration.MaxImport + 1} {
			_, err := i.Book.Import(ctx, "test", make([]registration.ImportRow, size), nil, false)
			wantKind(t, err, registration.Invalid, "import_size")
		}
	})
}

func TestTenThousandRows(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		i := installation.New(t, db)
		rows := make([]registration.ImportRow, 10_000)
		for n := range rows {
			rows[n] = row(n+2, fmt.Sprintf("SN-%06d", n))
		}
		start := time.Now()
		out, err := i.Book.Import(context.Background(), "test", rows, nil, false)
		took := time.Since(start)
		if err != nil || len(out.Codes) != len(rows) || devices(t, i) != len(rows) {
			t.Fatal(err)
		}
		t.Logf("10,000 rows: %v", took)
		if took > 10*time.Second {
			t.Errorf("10,000 rows took %v", took)
		}
	})
}
