"""Other services on the internet that programs with Hiveyard often want beside it. Nothing else here knows them."""
