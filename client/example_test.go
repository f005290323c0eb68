package client_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"github.com/natal-pki/natal/client"
)

// A device's first boot: enroll with a code, then use the certificate for a broker.
func Example() {
	code, err := os.ReadFile("/etc/device/code")
	if err != nil {
		log.Fatal(err)
	}
	store, err := client.OpenStore("/var/lib/device")
	if err != nil {
		log.Fatal(err)
	}
	c := &client.Client{
		Server:           "https://est.example.com:8443",
		TrustFingerprint: "5e4c0f6f3a0a2b1f8a1d9e7c6b5a49382716f5e4d3c2b1a0f9e8d7c6b5a49382",
		User:             "pump-7",
		Password:         strings.TrimSpace(string(code)),
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	identity, err := store.Enroll(ctx, c, "ec:P-256", client.Request{})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("renew at", client.RenewAt(identity.Certificate))

	brokerRoots, err := x509.SystemCertPool()
	if err != nil {
		log.Fatal(err)
	}
	config := store.TLSConfig("mqtt.example.com", brokerRoots)
	fmt.Println("connect to", config.ServerName)
}
