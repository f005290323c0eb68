// Package bridge keeps one MQTT broker in step with the EST server: what the broker trusts, whom it
// refuses, what each device may do, and who has to leave.
//
// One loop does it: fetch (the feed of package feedapi) -> validate (a bad set never reaches the disk) ->
// stage (a numbered generation) -> apply (whole files, then a reload) -> prove (a good and a revoked
// canary, a foreign certificate and none) -> kick (end the live sessions of revoked certificates). A set that is
// not proven is taken back. The loop is the only writer of its state directory and of the broker's files.
//
// Non-goals: it opens no port but its metrics, issues nothing, and decides nothing about a
// device. It does not start or stop the broker.
//
// Map:
//
//	config.go      configuration file -> Config; field comments are the manual
//	feed.go        the server's feed over HTTPS
//	set.go         a validated trust set, and the one file it becomes
//	validate.go    what a set must be before anything is written: its certificates; crl.go its CRLs; admit.go what needs approval;
//	               refusal.go names what it was not
//	trustset.go    from the server's offer to the wanted set
//	acl.go         device list + topic templates -> ACL file
//	state.go       what survives a restart; generation.go the last sets that were staged
//	canary.go      the certificates that a broker is proven with
//	broker.go      what the loop needs of a broker; probe.go connects as a canary
//	mosquitto*.go  Eclipse Mosquitto: files, reload, control, configuration check
//	process.go     signals to a process that is surely the broker
//	loop.go        the loop; apply.go stage, apply, prove, roll back; kick.go the queue; change.go the feed's changes
//	identity.go    own certificate and the broker's server certificate: enrollment and renewal
//	setup.go       everything a broker needs to start
//	metrics.go     Prometheus series; status.go what `status` prints
package bridge
