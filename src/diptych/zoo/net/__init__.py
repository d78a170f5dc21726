"""Files over the network: one question, one part, one file, one repository; `zoo.fetch` asks."""
