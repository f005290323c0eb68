// est-server device bundle: a key with its certificate, in files that nobody else reads.

package main

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/base32"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"

	"github.com/natal-pki/natal/server/admin"
	"software.sslmate.com/src/go-pkcs12"
)

type deviceBundle struct {
	jsonFlag
	ID           string `arg:"" help:"Device id; the device is added if it does not exist."`
	Format       string `help:"pem: key, certificate, issuing CA and root in one file. p12: the same as PKCS#12." enum:"pem,p12" default:"pem"`
	Out          string `help:"File to write, mode 0600. It must not exist." required:"" placeholder:"FILE"`
	Label        string `help:"Label of the device. Default: the device's, or default." placeholder:"LABEL"`
	KeyKind      string `help:"Kind of key, as ec:P-256 or rsa:2048; --key means the same. Default: the first one of the profile." placeholder:"KIND"`
	PasswordFile string `help:"With p12: file with the password; - is standard input. Default: one is made and written to OUT.password." placeholder:"FILE"`
}

const minPassword = 8

var keyKind = regexp.MustCompile(`^(ec:|rsa:|ed25519$)`)

func (c *deviceBundle) Run(a *app) error {
	if c.KeyKind == "" && keyKind.MatchString(a.Key) { // --key, the way ca create takes it
		c.KeyKind, a.Key = a.Key, ""
	}
	password, passwordOut, err := c.password(a)
	if err != nil {
		return err
	}
	outputs := []string{c.Out}
	if passwordOut != "" {
		outputs = append(outputs, passwordOut)
	}
	// The bundle exists once: what can fail is tried before it is made.
	if err := vacant(outputs...); err != nil {
		return err
	}
	return a.with(func(api *api) error {
		var out admin.Bundle
		if err := api.call(http.MethodPost, path("devices", c.ID, "bundle"), admin.NewBundle{Label: c.Label, Key: c.KeyKind, Format: c.Format}, &out); err != nil {
			return err
		}
		content, err := encodeBundle(c.Format, out, password)
		if err == nil {
			files := []outputFile{{c.Out, content}}
			if passwordOut != "" {
				files = append(files, outputFile{passwordOut, []byte(password + "\n")})
			}
			err = createFiles(files...)
		}
		clear(content)
		if err != nil {
			return fmt.Errorf("%w; the bundle is lost: est-server device reissue %s, then device bundle once more", err, c.ID)
		}
		return c.show(a, bundleFile{out.Device, out.Serial, c.Out, passwordOut, stamp(out.NotAfter)}, func(w io.Writer) {
			fmt.Fprintf(w, "the bundle of %s is in %s: certificate %s, until %s\n", out.Device, c.Out, out.Serial, stamp(out.NotAfter))
			if passwordOut != "" {
				fmt.Fprintf(w, "its password is in %s\n", passwordOut)
			}
			fmt.Fprintln(w, "the server keeps no copy of the key")
		})
	})
}

// bundleFile is what --json prints: where the bundle is, nothing of it.
type bundleFile struct {
	Device       string `json:"device"`
	Serial       string `json:"serial"`
	File         string `json:"file"`
	PasswordFile string `json:"password_file,omitempty"`
	NotAfter     string `json:"not_after"`
}

// password is that of a PKCS#12 file: the operator's, or one that is made and goes to the file out.
func (c *deviceBundle) password(a *app) (password, out string, err error) {
	switch {
	case c.Format != "p12" && c.PasswordFile != "":
		return "", "", wrongUsage("--password-file goes with --format p12")
	case c.Format != "p12":
		return "", "", nil
	case c.PasswordFile == "":
		random := make([]byte, 20)
		if _, err := rand.Read(random); err != nil {
			return "", "", err
		}
		return strings.ToLower(base32.StdEncoding.EncodeToString(random)), c.Out + ".password", nil
	}
	if password, err = a.readSecret(c.PasswordFile); err == nil && len(password) < minPassword {
		err = fmt.Errorf("--password-file %s: a password has at least %d characters", c.PasswordFile, minPassword)
	}
	return password, "", err
}

// encodeBundle is the content of a bundle's file. In PEM the key comes first, then the certificate and those above it up to the root, so that the one
// file serves as certificate, as key and as chain.
func encodeBundle(format string, b admin.Bundle, password string) ([]byte, error) {
	if format == "pem" {
		return []byte(b.Key + b.Certificate + b.Chain + b.Root), nil
	}
	block, _ := pem.Decode([]byte(b.Key))
	if block == nil {
		return nil, errors.New("the server sent no key")
	}
	defer clear(block.Bytes)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	certs, err := parseCertificates(b.Certificate + b.Chain + b.Root)
	if err != nil {
		return nil, err
	}
	return pkcs12.Modern.Encode(key, certs[0], certs[1:], password)
}
